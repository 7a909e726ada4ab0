"""Windows of budgets: hours, days and months of UTC. A window is named by the second in which it begins."""

from collections.abc import Mapping
from datetime import UTC, datetime

PERIODS = ("hour", "day", "month")
KEPT: Mapping[str, int] = {"hour": 48, "day": 400, "month": 24}
"""Windows that a file keeps: the newest in which something was spent. By number and not by age, or a clock that is wrong for
a minute would delete them."""
_SECONDS = {"hour": 3600, "day": 86_400}


def start_of(period: str, at: int) -> int:
    """The window of a moment."""
    if seconds := _SECONDS.get(period):
        return at - at % seconds
    return int(datetime.fromtimestamp(at, UTC).replace(day=1, hour=0, minute=0, second=0).timestamp())


def end_of(period: str, start: int) -> int:
    """Where the next one begins."""
    return start + seconds if (seconds := _SECONDS.get(period)) else start_of(period, start + 32 * 86_400)
