"""How evenly the tenants of a class were served lately: what an operator asks, not what the scheduler decides by.

The scheduler goes by virtual counters without an end (`fairness`). Here is the service of the last minute, divided by the
tenants' weights, and Jain's index over it (Jain, Chiu, Hawe 1984): 1 when all had the same, 1/n when one of n had
everything. A tenant that asked for little had little, so a low index alone is no injustice; the gap between tenants
that both had to wait is (`Scheduler.snapshot`)."""

from collections import deque

WINDOW_NS = 60_000_000_000
SLICE_NS = 5_000_000_000
"""The window moves on by this much at a time."""


class RecentService:
    """Service by tenant over the last minute, in microseconds at weight 1. `roll` before reading, and now and then."""

    def __init__(self) -> None:
        self._present: dict[str, int] = {}
        self._past: deque[dict[str, int]] = deque(maxlen=WINDOW_NS // SLICE_NS - 1)
        self._until_ns = 0

    def charge(self, tenant: str, cost_us: int) -> None:
        """The tenant was served. A cost of 0 says that it is here, and so counts among those that were not served."""
        self._present[tenant] = self._present.get(tenant, 0) + cost_us

    def roll(self, now_ns: int) -> bool:
        """Let go of what is older than the window. Returns whether it has moved on."""
        if now_ns < self._until_ns:
            return False
        while now_ns >= self._until_ns:
            if self._present or self._past:
                self._past.append(self._present)
                self._present = {}
            if now_ns >= self._until_ns + WINDOW_NS:
                self._past.clear()
                self._until_ns = now_ns
            self._until_ns += SLICE_NS
        return True

    def by_tenant(self) -> dict[str, int]:
        """Everybody who was here in the window."""
        total: dict[str, int] = {}
        for part in (*self._past, self._present):
            for tenant, cost_us in part.items():
                total[tenant] = total.get(tenant, 0) + cost_us
        return total

    def jain(self) -> float:
        """Jain's index; 1 with less than two tenants, and where nobody was served."""
        return jain(list(self.by_tenant().values()))


def jain(values: list[int]) -> float:
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
