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
from dataclasses import dataclass
from enum import StrEnum

from poise.scheduler.bottleneck import is_full
from poise.scheduler.planning.plan import StepPlan, StepResult
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.request import Queued, Rejected, RejectReason, Request, RequestClass
from poise.wire import messages as wire
from poise.wire.changes import ChangeKind

REFUSAL_S = 1.0
WINDOW_S = 5.0
GIVEN_OUT_S = 1.0


class Resource(StrEnum):
    COMPUTE = "compute"
    KV_CELLS = "kv cells"
    HOST_MEMORY = "host memory"
    QUEUE = "queue"


@dataclass(slots=True)
class _Waiting:
    """One live request of the class, as far as the plans and messages tell."""

    n_prompt: int
    has_slot: bool = False
    paused: bool = False
    dropped: bool = False
    n_computed: int = 0
    n_before: int = 0
    """Cells that it had when they were dropped."""


class Pressure:
    """Watches one class. Is called with what the journal records (`recorded`) and what the engine sends (`heard`)."""

    def __init__(self, request_class: RequestClass, policy: SchedulerPolicy) -> None:
        self.waited_s: dict[Resource, float] = dict.fromkeys(Resource, 0.0)
        self.gave_out_s: dict[Resource, float] = {}
        """When each resource gave out first, in virtual seconds."""
        self._class = request_class
        self._policy = policy
        self._live: dict[int, _Waiting] = {}
        self._classes: dict[int, RequestClass] = {}
        self._plan: StepPlan | None = None
        self._full = False
        self._last_ns = 0
        self._recent: dict[Resource, deque[tuple[float, float]]] = {r: deque() for r in Resource}
        self._recent_sum: dict[Resource, float] = dict.fromkeys(Resource, 0.0)

    def recorded(self, now_ns: int, kind: str, values: tuple[object, ...]) -> None:
        """An entry of the journal, as it is made."""
        match kind, values:
            case "add", (Request() as request, Queued()):
                self._classes[request.request_id] = request.request_class
                if request.request_class is self._class:
                    self._live[request.request_id] = _Waiting(request.n_prompt)
            case "add", (Request() as request, Rejected() as answer):
                if request.request_class is self._class and answer.reason is not RejectReason.TOO_LONG:
                    self._add(Resource.QUEUE, REFUSAL_S, now_ns)
            case "plan", (StepPlan() as plan,):
                self._plan, self._full = plan, self._is_full(plan)
                self._last_ns = now_ns
            case "result", (StepResult() as result,):
                self._step(result, now_ns)

    def heard(self, message: wire.ToGateway) -> None:
        if not isinstance(message, wire.Step):
            return
        for change in message.changes:
            if (one := self._live.get(change.request_id)) is not None:
                self._changed(one, change.what)
        for finish in message.finishes:
            self._live.pop(finish.request_id, None)
            self._classes.pop(finish.request_id, None)

    @property
    def first(self) -> Resource | None:
        """The resource that gave out first; without one, the one that was waited for most; None: nobody waited."""
        if self.gave_out_s:
            return min(self.gave_out_s, key=lambda r: self.gave_out_s[r])
        most = max(Resource, key=lambda r: self.waited_s[r])
        return most if self.waited_s[most] > 0 else None

    def _changed(self, one: _Waiting, what: str) -> None:
        match what:
            case ChangeKind.PAUSE | ChangeKind.STALL:
                one.paused = True
            case ChangeKind.RESUME:
                one.paused, one.has_slot = False, True
            case ChangeKind.SWAP:
                one.has_slot = False
            case ChangeKind.DROP:
                one.has_slot, one.dropped, one.n_before, one.n_computed = False, True, one.n_computed, 0

    def _step(self, result: StepResult, now_ns: int) -> None:
        """A step has taken its time: whoever waited meanwhile has waited for something."""
        assert self._plan is not None, "a result without its plan"
        for batch in self._plan.batches:
            for chunk in batch.chunks:
                if (one := self._live.get(chunk.request_id)) is not None:
                    one.has_slot, one.n_computed = True, chunk.start + chunk.n_tokens
                    one.dropped = one.dropped and one.n_computed < one.n_before
        seconds = (now_ns - self._last_ns) / 1e9
        waited = dict.fromkeys(Resource, 0.0)
        for one in self._live.values():
            if not one.paused and (resource := self._waits_for(one)) is not None:
                waited[resource] += seconds
        for resource, total_s in waited.items():
            self._add(resource, total_s, now_ns)

    def _waits_for(self, one: _Waiting) -> Resource | None:
        if one.dropped:
            return Resource.HOST_MEMORY
        if one.has_slot:
            return Resource.COMPUTE if one.n_computed < one.n_prompt else None
        return Resource.COMPUTE if self._full else Resource.KV_CELLS

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

    def _is_full(self, plan: StepPlan) -> bool:
        """Whether the plan spends most of its time budget: the ITL target of the first class that decodes."""
        decoding = {self._classes.get(c.request_id) for batch in plan.batches for c in batch.chunks if not c.is_prompt}
        budget_us = next((p.itl_target_us for c, p in self._policy.classes.items() if c in decoding), self._policy.step_max_us)
        return is_full(plan.batches, budget_us)
