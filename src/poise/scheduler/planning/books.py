"""What the scheduler knows between two steps: read by a planning pass, changed when a step is complete."""

from dataclasses import dataclass, field

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.fairness.tenants import TenantBooks
from poise.scheduler.memory.kv import KvPool
from poise.scheduler.planning.budget import CostModel
from poise.scheduler.policy import ClassPolicy, SchedulerPolicy
from poise.scheduler.power import NO_LIMITS, Background, PowerLimits
from poise.scheduler.queues import WaitingQueue
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import Sequence


@dataclass(slots=True)
class Books:
    """What the scheduler knows between steps; a planning pass reads it and gives out slots."""

    policy: SchedulerPolicy
    pools: dict[str, KvPool]
    queues: dict[tuple[RequestClass, str], WaitingQueue]
    served: dict[RequestClass, ServedCost]
    models: dict[str, CostModel]
    tenants: TenantBooks
    running: dict[RequestClass, dict[int, Sequence]]
    """Per class, running sequences by request id, in order of their start, or of their turns."""
    limits: dict[RequestClass, ClassPolicy]
    """The classes' policies with as many queue places and slots as they may have now."""
    power: PowerLimits = NO_LIMITS
    row_limit: int = 0
    """Interactive requests that may run at once; 0: no limit."""
    background_credit_us: float = 0.0
    """Compute owed to background work (positive) or had in advance (negative)."""
    heavy_saved_us: float = 0.0
    """Budget that a heavy prompt has saved up for a chunk of the cheaper size."""
    quantum_saved_us: float = 0.0
    """Budget that background's first prompt has saved up for a quantum."""
    turns: dict[RequestClass, int] = field(default_factory=lambda: dict.fromkeys(RequestClass, 0))
    """With `power.step_us`: decodes since prompts of the class came first."""

    def runs(self, request_class: RequestClass) -> bool:
        """Whether anything of the class is computed at all now."""
        return request_class is not RequestClass.BACKGROUND or self.power.background is Background.RUN

    def has_rows(self, request_class: RequestClass) -> bool:
        """Whether one more request of the class may run: interactive ones are counted without the background's."""
        first, limit = self.running[RequestClass.INTERACTIVE], self.row_limit
        n_rows = len(first) if request_class is RequestClass.INTERACTIVE else sum(map(len, self.running.values()))
        return not limit or n_rows < limit

    def first_waiting(self, request_class: RequestClass, pool: str, *, heavy: bool) -> Sequence | None:
        """The queued sequence, heavy or not, that gets the next slot of the pool that the class may have."""
        queue, held, tenants = self.queues[request_class, pool], self.pools[pool].held_by_tenant, self.tenants
        if not queue.n_queued:  # as mostly: this is asked for each class, pool and kind in every step
            return None
        return queue.first(tenants.may_run, lambda t: held(t) / tenants.weight(t), heavy=heavy)

    def is_heavy(self, sequence: Sequence) -> bool:
        """Rule R5: whether so much of its prompt must still be computed. Output that it came with counts nowhere."""
        left = sequence.request.n_prompt - sequence.n_computed
        return left > self.policy.classes[sequence.request_class].heavy_tokens

    def rivals(self, request_class: RequestClass) -> list[Sequence]:
        """The class's heavy prompts that are computed, if there is no place for another one beside them."""
        heavy = [sequence for sequence in self.running[request_class].values() if self.is_heavy(sequence)]
        return heavy if len(heavy) >= self.limits[request_class].heavy_max else []

    def is_live(self, request_class: RequestClass) -> bool:
        return bool(self.running[request_class]) or any(
            queue.n_queued for (owner, _), queue in self.queues.items() if owner is request_class
        )
