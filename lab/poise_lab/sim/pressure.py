"""What requests wait for, and which resource gives out first.

After each step, the time that it took is added up for every request of a class that waits, under what it waits for:

    compute      it has a slot and its prompt is not computed yet; or there is a slot that it may have and the step had no time
                 left; or there is none, but the step was full all the same, so a slot would not have helped it
    kv cells     it waits for a slot (a first one, or one to come back to), and the step had time to spare
    host memory  its cells were dropped, because the store had no room for them, and it has not come back; or it computes again
                 what was dropped
    queue        it was refused; each refusal counts as REFUSAL_S seconds of waiting, or it would weigh nothing

When a step is full, `poise.scheduler.bottleneck` says; live, that tells which resource each step lacked. A resource has given
out at the first moment when, over the last WINDOW_S seconds, requests waited for it for GIVEN_OUT_S request-seconds in each
second."""

from collections import deque
from collections.abc import Mapping
from enum import StrEnum

from poise.scheduler.bottleneck import is_full
from poise.scheduler.planning.plan import StepPlan
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.request import Rejected, RejectReason, Request, RequestClass
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.sequence import Sequence, State

REFUSAL_S = 1.0
WINDOW_S = 5.0
GIVEN_OUT_S = 1.0


class Resource(StrEnum):
    COMPUTE = "compute"
    KV_CELLS = "kv cells"
    HOST_MEMORY = "host memory"
    QUEUE = "queue"


class Pressure:
    """Watches one class: `recorded` is an observer of a simulation."""

    def __init__(self, request_class: RequestClass, policy: SchedulerPolicy) -> None:
        self.waited_s: dict[Resource, float] = dict.fromkeys(Resource, 0.0)
        self.gave_out_s: dict[Resource, float] = {}
        """When each resource gave out first, in virtual seconds."""
        self._class = request_class
        self._policy = policy
        self._plan = StepPlan(0, (), ())
        self._began_ns = 0
        self._recent: dict[Resource, deque[tuple[float, float]]] = {r: deque() for r in Resource}
        self._recent_sum: dict[Resource, float] = dict.fromkeys(Resource, 0.0)

    def recorded(self, scheduler: Scheduler, now_ns: int, kind: str, values: tuple[object, ...]) -> None:
        """An entry of the journal, as it is made."""
        match kind, values:
            case "add", (Request() as request, Rejected() as answer):
                if request.request_class is self._class and answer.reason is not RejectReason.TOO_LONG:
                    self._add(Resource.QUEUE, REFUSAL_S, now_ns)
            case "plan", (StepPlan() as plan,):
                self._plan, self._began_ns = plan, now_ns
            case "result", _:
                self._step(scheduler.sequences, now_ns)

    @property
    def first(self) -> Resource | None:
        """The resource that gave out first; without one, the one that was waited for most; None: nobody waited."""
        if self.gave_out_s:
            return min(self.gave_out_s, key=lambda r: self.gave_out_s[r])
        most = max(Resource, key=lambda r: self.waited_s[r])
        return most if self.waited_s[most] > 0 else None

    def _step(self, sequences: Mapping[int, Sequence], now_ns: int) -> None:
        """A step has taken its time: whoever waited meanwhile has waited for something."""
        chunks = [chunk for batch in self._plan.batches for chunk in batch.chunks]
        computed = {chunk.request_id: chunk.start + chunk.n_tokens for chunk in chunks}
        decoding = {sequences[chunk.request_id].request.request_class for chunk in chunks if not chunk.is_prompt}
        # The time budget is the ITL target of the first class that decodes.
        budget_us = next((p.itl_target_us for c, p in self._policy.classes.items() if c in decoding), self._policy.step_max_us)
        is_step_full = is_full(self._plan.batches, budget_us)
        waited = dict.fromkeys(Resource, 0.0)
        for request_id, one in sequences.items():
            if one.request.request_class is self._class and one.state is not State.PAUSED:
                resource = _waits_for(one, computed.get(request_id, one.n_computed), is_step_full=is_step_full)
                if resource is not None:
                    waited[resource] += (now_ns - self._began_ns) / 1e9
        for resource, total_s in waited.items():
            self._add(resource, total_s, now_ns)

    def _add(self, resource: Resource, seconds: float, now_ns: int) -> None:
        now_s = now_ns / 1e9
        self.waited_s[resource] += seconds
        recent = self._recent[resource]
        recent.append((now_s, seconds))
        self._recent_sum[resource] += seconds
        while recent[0][0] < now_s - WINDOW_S:
            self._recent_sum[resource] -= recent.popleft()[1]
        if resource not in self.gave_out_s and self._recent_sum[resource] >= GIVEN_OUT_S * WINDOW_S:
            self.gave_out_s[resource] = now_s


def _waits_for(one: Sequence, n_computed: int, *, is_step_full: bool) -> Resource | None:
    """What a request that may run waits for, if it does, in a step after which `n_computed` of its tokens are computed."""
    if n_computed < one.refill:
        return Resource.HOST_MEMORY
    if one.slot < 0:
        return Resource.COMPUTE if is_step_full else Resource.KV_CELLS
    return Resource.COMPUTE if n_computed < one.request.n_prompt else None
