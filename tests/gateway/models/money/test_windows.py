"""Windows of budgets: each moment is in one of each period, and they follow on each other without gaps."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.models.money.windows import PERIODS, end_of, start_of


@given(st.integers(0, 8_000_000_000), st.sampled_from(PERIODS))
def test_a_moment_is_in_one_window(at: int, period: str) -> None:
    """From its beginning to before the next one's."""
    start = start_of(period, at)
    assert start <= at < end_of(period, start)
    assert start_of(period, end_of(period, start)) == end_of(period, start)
    assert start_of(period, end_of(period, start) - 1) == start
    begins = datetime.fromtimestamp(start, UTC)
    assert (begins.minute, begins.second) == (0, 0)
    assert period == "hour" or begins.hour == 0
    assert period != "month" or begins.day == 1


@pytest.mark.parametrize(("month", "n_days"), [("2026-02", 28), ("2028-02", 29), ("2026-12", 31)])
def test_months_are_those_of_the_calendar(month: str, n_days: int) -> None:
    """Leap years and the turn of the year included."""
    start = int(datetime.fromisoformat(f"{month}-01T00:00:00+00:00").timestamp())
    assert end_of("month", start_of("month", start + 12 * 86_400)) - start == n_days * 86_400
