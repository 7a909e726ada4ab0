"""Whether an account that waits gets its share, whoever arrives beside it: invariant 7, after every simulated step.

docs/scheduler.md, "How far apart two tenants can be", says how far below the floor an account may be that always waits:

    (C + f)·G + (n + 2)·S + 4·G + A        background: the first term is G + T if that is more

An account that has something queued again after it had nothing is lifted to a grain below the floor, so this holds for whoever
waits, from that moment on. S and A are the longest step and the dearest request so far. The document's conditions are this
module's: accounts without limits, all of one weight, none of whose requests may have to wait for the long pool."""

from collections.abc import Mapping
from dataclasses import dataclass

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.planning.plan import StepPlan
from poise.scheduler.planning.preemption import COMPUTE_GRAINS
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, SchedulerPolicy, TenantPolicy
from poise.scheduler.request import Request, RequestClass

ARRIVAL_GRAINS = 4
"""What arrivals add, whatever their number."""


@dataclass(slots=True)
class _Living:
    """A request that has not ended. `most_us`: it was served no more than that."""

    account: str
    request_class: RequestClass
    most_us: int = 0


class FairShares:
    """Is called for every request and step; `after_step` asserts the bound. `served`: the scheduler's counters by class."""

    def __init__(self, policy: SchedulerPolicy, served: Mapping[RequestClass, ServedCost]) -> None:
        self._policy = policy
        self._served = served
        self._applies = bool(served) and not policy.tenants and policy.tenant_default == TenantPolicy()
        self._living: dict[int, _Living] = {}
        self._long: dict[str, None] = {}
        """Accounts that had something for the long pool, where a conversation may go on for as long as it is kept."""
        self._before: dict[RequestClass, dict[str, int]] = {c: {} for c in served}
        self._totals_us = dict.fromkeys(served, 0)
        self._step_us = 0
        self._dearest_us = dict.fromkeys(RequestClass, 0)
        self.worst_us = dict.fromkeys(served, 0)
        """The furthest that an account which waited was below the floor."""

    def added(self, request: Request) -> None:
        request_class, account = request.request_class, request.account
        self._living[request.request_id] = _Living(account, request_class)
        if self._applies:
            self._before[request_class].setdefault(account, self._served[request_class].tenants.get(account, 0))
        heavy = request.n_prompt > self._policy.classes[request_class].heavy_tokens
        outgrows = request.n_cells(request.max_output) > self._policy.pools[SHORT_POOL].slot_cells
        if heavy or request.pool == LONG_POOL or outgrows:
            self._long[account] = None

    def downgraded(self, request_id: int) -> None:
        self._living[request_id].request_class = RequestClass.BACKGROUND

    def ended(self, request_id: int, served_us: int) -> None:
        living = self._living.pop(request_id)
        dearest_us = self._dearest_us[living.request_class]
        self._dearest_us[living.request_class] = max(dearest_us, served_us)

    def bound_us(self, request_class: RequestClass) -> int:
        """How far below the floor an account of the class that waits may be, after the steps so far."""
        policy, grain_us = self._policy, self._policy.grain_us
        n_slots = min(policy.pools[SHORT_POOL].n_slots, policy.classes[request_class].slots_max)
        reached_us = (2 * COMPUTE_GRAINS + n_slots) * grain_us // 2
        if request_class is RequestClass.BACKGROUND:
            reached_us = max(reached_us, grain_us + policy.turn_us)
        living_us = (x.most_us for x in self._living.values() if x.request_class is request_class)
        dearest_us = max(self._dearest_us[request_class], *living_us, 0)
        return reached_us + (n_slots + 2) * self._step_us + ARRIVAL_GRAINS * grain_us + dearest_us

    def after_step(self, plan: StepPlan) -> None:
        """A plan was carried out and charged."""
        if not self._applies:
            return
        totals_us = {c: served.total_us for c, served in self._served.items()}
        self._step_us = max(self._step_us, sum(totals_us.values()) - sum(self._totals_us.values()))
        self._totals_us = totals_us
        self._charge(plan)
        for request_class, served in self._served.items():
            behind = {a: served.floor_us - served._served[a] for a in served._n_queued if a not in self._long}
            if not behind:
                continue
            account = max(behind, key=behind.__getitem__)
            self.worst_us[request_class] = max(self.worst_us[request_class], behind[account])
            if behind[account] > (most_us := self.bound_us(request_class)):
                raise AssertionError(
                    f"{account} waits and is {behind[account] / 1e6:.1f} s below the floor of {request_class}; "
                    f"most: {most_us / 1e6:.1f} s (invariant 7)"
                )

    def _charge(self, plan: StepPlan) -> None:
        """What its account was served since the last step is the most that a request in this one was."""
        computed = {chunk.request_id for batch in plan.batches for chunk in batch.chunks}
        for request_id in sorted(computed & self._living.keys()):
            living = self._living[request_id]
            now_us = self._served[living.request_class].tenants.get(living.account, 0)
            living.most_us += max(0, now_us - self._before[living.request_class].get(living.account, now_us))
        self._before = {c: dict(served.tenants) for c, served in self._served.items()}
