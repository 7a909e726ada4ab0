"""Served cost by account: virtual counters, one set for each class.

After VTC (Sheng et al., OSDI 2024, arXiv 2401.00588): the least-served goes first. What is counted here is not tokens but
measured compute, in microseconds: the cost of each step is split over its sequences by the cost model's shares, and divided by
the account's weight. Who arrives or returns starts at the *floor*, a virtual time that only grows, a grain below it at most:

1. It grows by what anybody is served, divided by the weights of all who are alive: as fast as a fair share does. (As virtual time
   of weighted fair queueing: Demers, Keshav and Shenker, SIGCOMM 1989.)
2. It is never below the least served of those that wait. (As `min_vruntime` of Linux's fair scheduler.)
3. Where nobody waits, nobody is owed anything: it is then not below the most served, either.

An arrival does not lower it, so a hundred arrivals start where one does, and each gets a grain, at most, before one that waits
and has been served its share. And it goes on growing while newcomers are served, so arrivals without an end soon start above
who waits: its turn comes when a fair share of those alive would have brought it."""

from collections.abc import Callable, Iterable, Mapping

from poise.scheduler.fairness.equity import RecentService

DEPARTED_MAX = 1024
_WEIGHT_UNIT = 1_000_000
"""Weights are summed up as integers: sums of floats would depend on who came when."""


class ServedCost:
    """Virtual counters of the accounts of one class, in microseconds at weight 1.

    An account is alive while it has requests waiting or running; one that stands still is neither. It waits while some of them
    are queued (`queue` and `unqueue`; who does not call them has nobody wait). Of those that have left, the DEPARTED_MAX that
    were served most are remembered: what leaves below the floor would start no lower when forgotten."""

    def __init__(self, grain_us: int = 1, weight: Callable[[str], float] = lambda tenant: 1.0) -> None:
        """Accounts whose served cost differs by less than about `grain_us` rank alike; see `rank`."""
        self._grain_us = grain_us
        self._weight = weight
        self._served: dict[str, int] = {}
        self._n_active: dict[str, int] = {}
        self._n_queued: dict[str, int] = {}
        self._departed: dict[str, int] = {}
        self.floor_us = 0
        """The virtual time: who has been served so much has had a fair share. It never falls."""
        self._weights = 0
        """Of all that are alive, in _WEIGHT_UNITs."""
        self._rest = 0
        """What was served and has not moved the floor by a whole microsecond."""
        self.recent = RecentService()
        self.total_us = 0
        """Of all accounts since the start, whatever their weights."""

    def __getitem__(self, tenant: str) -> int:
        return self._served[tenant]

    @property
    def tenants(self) -> dict[str, int]:
        """Counters of the accounts that are alive. Not to be modified."""
        return self._served

    def rank(self, tenant: str) -> int:
        """Lower goes first. Served cost in whole grains.

        Without a grain, prompts of equally served accounts would take turns chunk by chunk, and all of them end late. With
        one, a prompt that was begun is mostly finished before another account's; it adds at most a grain to the unfairness.
        An account all of whose requests stand still ranks where it was when it left."""
        served = self._served.get(tenant)
        return (self._departed.get(tenant, 0) if served is None else served) // self._grain_us

    def enter(self, tenant: str, *, returns: bool = False) -> None:
        """One more request of the account wants compute.

        One that is new, or returns, starts a grain below the floor, or where it was, whichever is more: its next prompt goes
        before those of others that have had their share, but it cannot save up more. `returns`: it waited in an engine before
        this one, and in between; it goes on where it was, and moves nobody's start while others are still to come back."""
        if tenant not in self._served:
            if returns and tenant in self._departed:
                self._served[tenant] = self._departed.pop(tenant)
            else:
                self._lift_floor()
                self._served[tenant] = max(self._departed.pop(tenant, 0), self.floor_us - self._grain_us)
            self._weights += self._units(tenant)
        self._n_active[tenant] = self._n_active.get(tenant, 0) + 1
        self.recent.charge(tenant, 0)

    def leave(self, tenant: str) -> None:
        """One of the account's requests wants no more, or none for now."""
        self._n_active[tenant] -= 1
        if self._n_active[tenant] == 0:
            if not self._n_queued:
                self._lift_floor()
            self._departed[tenant] = self._served[tenant]
            self._weights -= self._units(tenant)
            del self._n_active[tenant], self._served[tenant]
            if len(self._departed) > DEPARTED_MAX:
                self._forget()

    def queue(self, tenant: str, *, returns: bool = False) -> None:
        """One of the account's requests, which has entered, waits for a slot.

        Where none did before, it has wanted no more than it got; that saves nothing up, either. `returns`: as for `enter`."""
        if tenant not in self._n_queued and not returns:
            self._lift_floor()
            self._served[tenant] = max(self._served[tenant], self.floor_us - self._grain_us)
        self._n_queued[tenant] = self._n_queued.get(tenant, 0) + 1

    def unqueue(self, tenant: str) -> None:
        """It waits no more."""
        self._n_queued[tenant] -= 1
        if self._n_queued[tenant] == 0:
            del self._n_queued[tenant]

    def charge(self, tenant: str, cost_us: int) -> None:
        assert cost_us >= 0, f"negative cost {cost_us}"
        weight = self._weight(tenant)
        weighted_us = cost_us if weight == 1.0 else int(cost_us / weight + 0.5)
        self._served[tenant] += weighted_us
        self.recent.charge(tenant, weighted_us)
        self.total_us += cost_us
        grown_us, self._rest = divmod(self._rest + cost_us * _WEIGHT_UNIT, self._weights)
        self.floor_us += grown_us

    def roll(self, now_ns: int) -> None:
        """Time has passed. Whoever is still here counts in the new window, served or not."""
        if self.recent.roll(now_ns):
            for tenant in self._served:
                self.recent.charge(tenant, 0)

    def gap_us(self, tenants: Iterable[str]) -> int:
        """How far apart the least and the most served of these accounts, which are alive, are."""
        served = [self._served[tenant] for tenant in tenants]
        return max(served) - min(served) if served else 0

    def above_us(self) -> dict[str, int]:
        """How far above the floor each account is that is alive (below 0: it is owed so much), or that left above it.

        With `restore`, it is what an engine after this one has to know: floors of different engines are not to be compared."""
        start_us = self.floor_us - self._grain_us
        above = {tenant: served - self.floor_us for tenant, served in self._departed.items() if served > start_us}
        return above | {tenant: served - self.floor_us for tenant, served in self._served.items()}

    def restore(self, above_us: Mapping[str, int]) -> None:
        """Accounts were so far above the floor in an engine before this one. Who is alive here stays as it is."""
        self._departed |= {t: self.floor_us + above for t, above in above_us.items() if t not in self._served}
        if len(self._departed) > DEPARTED_MAX:
            self._forget()

    def forget(self, tenant: str) -> None:
        """Do not remember an account that has left."""
        self._departed.pop(tenant, None)

    def _lift_floor(self) -> None:
        """Rules 2 and 3 of the module's text, before somebody starts there."""
        if self._n_queued:
            least = min(self._served[tenant] for tenant in self._n_queued)
        else:
            least = max(self._served.values(), default=0)
        self.floor_us = max(self.floor_us, least)

    def _units(self, tenant: str) -> int:
        return max(1, int(self._weight(tenant) * _WEIGHT_UNIT + 0.5))

    def _forget(self) -> None:
        """Of those that have left, keep the ones that would start above the floor, the most served of them if need be.

        A quarter goes at once, so that forgetting is rare: an account that is forgotten starts a grain below the floor, like
        anybody."""
        floor_us = self.floor_us - self._grain_us
        kept = sorted(self._departed.items(), key=lambda item: item[1])[-(DEPARTED_MAX * 3 // 4) :]
        self._departed = {tenant: served for tenant, served in kept if served > floor_us}


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
