"""Served cost by tenant: virtual counters, one set for each class.

After VTC (Sheng et al., OSDI 2024, arXiv 2401.00588): the least-served tenant goes first, and a tenant that returns from
idleness is lifted to just below the least-served active one, so that absence earns no more than a head start. What is
counted here is not tokens but measured compute, in microseconds: the cost of each step is split over its sequences by the
cost model's shares, and divided by the tenant's weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from poise.scheduler.equity import RecentService

DEPARTED_MAX = 1024


class ServedCost:
    """Virtual counters of the tenants of one class, in microseconds at weight 1.

    A tenant is active while it has requests waiting or running; one that stands still is neither. Of those that have left, the
    last DEPARTED_MAX are remembered, so that leaving and coming back does not wipe out what was served.
    """

    def __init__(self, grain_us: int = 1, weight: Callable[[str], float] = lambda tenant: 1.0) -> None:
        """Tenants whose served cost differs by less than about `grain_us` rank alike; see `rank`."""
        self._grain_us = grain_us
        self._weight = weight
        self._served: dict[str, int] = {}
        self._n_active: dict[str, int] = {}
        self._departed: dict[str, int] = {}
        self._floor = 0
        self.recent = RecentService()
        self.total_us = 0
        """Of all tenants since the start, whatever their weights."""

    def __getitem__(self, tenant: str) -> int:
        return self._served[tenant]

    @property
    def tenants(self) -> dict[str, int]:
        """Counters of the active tenants. Not to be modified."""
        return self._served

    def rank(self, tenant: str) -> int:
        """Lower goes first. Served cost in whole grains.

        Without a grain, prompts of equally served tenants would take turns chunk by chunk, and all of them end late. With
        one, a prompt that was begun is mostly finished before another tenant's; it adds at most a grain to the unfairness.
        A tenant all of whose requests stand still ranks where it was when it left.
        """
        served = self._served.get(tenant)
        return (self._departed.get(tenant, 0) if served is None else served) // self._grain_us

    def enter(self, tenant: str) -> None:
        """One more request of the tenant wants compute.

        One that returns starts a grain below the least-served active tenant, at most: its next prompt goes before those of
        tenants that have been served all the while, but it cannot save up more. (Linux's fair scheduler does the same for
        tasks that slept.)
        """
        if tenant not in self._served:
            least = min(self._served.values(), default=self._floor)
            self._served[tenant] = max(self._departed.pop(tenant, 0), least - self._grain_us)
        self._n_active[tenant] = self._n_active.get(tenant, 0) + 1
        self.recent.charge(tenant, 0)

    def leave(self, tenant: str) -> None:
        """One of the tenant's requests wants no more, or none for now."""
        self._n_active[tenant] -= 1
        if self._n_active[tenant] == 0:
            served = self._departed[tenant] = self._served[tenant]
            self._floor = max(self._floor, served)
            del self._n_active[tenant], self._served[tenant]
            if len(self._departed) > DEPARTED_MAX:
                del self._departed[next(iter(self._departed))]

    def charge(self, tenant: str, cost_us: int) -> None:
        assert cost_us >= 0, f"negative cost {cost_us}"
        weight = self._weight(tenant)
        weighted_us = cost_us if weight == 1.0 else int(cost_us / weight + 0.5)
        self._served[tenant] += weighted_us
        self.recent.charge(tenant, weighted_us)
        self.total_us += cost_us

    def roll(self, now_ns: int) -> None:
        """Time has passed. Whoever is still here counts in the new window, served or not."""
        if self.recent.roll(now_ns):
            for tenant in self._served:
                self.recent.charge(tenant, 0)

    def gap_us(self, tenants: Iterable[str]) -> int:
        """How far apart the least and the most served of these active tenants are."""
        served = [self._served[tenant] for tenant in tenants]
        return max(served) - min(served) if served else 0

    def check(self) -> None:
        assert self._served.keys() == self._n_active.keys(), "served cost and activity disagree"
        assert all(n > 0 for n in self._n_active.values()), "a tenant is active with no requests"


def split_cost(cost_us: int, shares: list[float]) -> list[int]:
    """Split an integer cost over shares; the parts add up to it exactly. `shares` are positive; order matters."""
    total = sum(shares)
    parts, given, seen = [], 0, 0.0
    for share in shares:
        seen += share
        upto = cost_us if total <= 0 else min(cost_us, int(cost_us * (seen / total) + 0.5))
        parts.append(max(0, upto - given))
        given += parts[-1]
    if parts:
        parts[-1] += cost_us - given
    return parts
