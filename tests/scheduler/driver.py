"""Drives a scheduler through steps of a made-up machine and checks its promises after each one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from poise.scheduler.budget import BatchShape, CostModel
from poise.scheduler.plan import (
    Batch,
    BatchResult,
    CopySlot,
    DropEntry,
    KvOperation,
    LoadSlot,
    MoveSlot,
    ReleaseSlot,
    StepPlan,
    StepResult,
    StoreSlot,
    TrimSlot,
)
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, CostPrior, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Event, Finished, Queued, Rejected, Request, RequestClass, Started
from poise.scheduler.scheduler import Scheduler

INTERACTIVE, BACKGROUND = RequestClass.INTERACTIVE, RequestClass.BACKGROUND


def policy(
    *,
    slots: int = 10,
    slot_cells: int = 4096,
    reserved: int = 2,
    long_slots: int = 2,
    queue_max: int = 64,
    min_share: float = 0.15,
    background_slots: int = 6,
    heavy_max: int = 1,
    heavy_tokens: int = 1024,
    chunk_tokens: int = 0,
    hole_steps: int = 2,
    ageing: float = 0.1,
    itl_us: int = 100_000,
) -> SchedulerPolicy:
    """The default policy, with what a test wants otherwise."""
    return SchedulerPolicy(
        pools={
            SHORT_POOL: PoolPolicy(slots, slot_cells, reserved),
            LONG_POOL: PoolPolicy(long_slots, 2 * slot_cells),
        },
        classes={
            INTERACTIVE: ClassPolicy(queue_max, itl_us, 0.0, slots, heavy_tokens, long_slots),
            BACKGROUND: ClassPolicy(queue_max, itl_us * 3 // 2, min_share, background_slots, heavy_tokens, heavy_max),
        },
        chunk_tokens={LONG_POOL: chunk_tokens} if chunk_tokens else {},
        hole_steps=hole_steps,
        ageing=ageing,
        priors=dict.fromkeys((SHORT_POOL, LONG_POOL), COST),
    )


COST = CostPrior(fixed_us=3000, decode_us=5000, prompt_us=4000, attended_us=0.5)
STORED_CELL_BYTES = 100
"""What the made-up machine's host store takes for a cell."""


@dataclass
class Driver:
    """One scheduler and a machine that costs what COST says. `cells` and `entries` mirror what the runner would hold."""

    scheduler: Scheduler
    now_ns: int = 0
    events: list[Event] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    cells: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """(pool, slot) to (request id, cells held); a request id that has ended means that the slot is warm."""
    entries: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """Entry of the host store to (pool, request id, cells held)."""
    accepted: dict[int, Request] = field(default_factory=dict)
    _next_id: int = 1
    _cost: CostModel = field(default_factory=lambda: CostModel(COST))

    def add(
        self,
        n_prompt: int = 50,
        max_output: int = 10,
        tenant: str = "a",
        request_class: RequestClass = INTERACTIVE,
    ) -> int:
        """Add a request that must be accepted; returns its id."""
        request_id = self._next_id
        answer = self.offer(n_prompt, max_output, tenant, request_class)
        assert isinstance(answer, Queued), answer
        return request_id

    def offer(
        self,
        n_prompt: int = 50,
        max_output: int = 10,
        tenant: str = "a",
        request_class: RequestClass = INTERACTIVE,
    ) -> Queued | Rejected:
        request = Request(self._next_id, tenant, request_class, n_prompt, max_output)
        self._next_id += 1
        answer = self.scheduler.add(request, self.now_ns)
        if isinstance(answer, Queued):
            self.accepted[request.request_id] = request
        self.scheduler.check()
        return answer

    def abort(self, request_id: int) -> list[Event]:
        events = self.scheduler.abort(request_id, self.now_ns)
        self.events += events
        self.scheduler.check()
        return events

    def step(
        self, ended: Sequence[int] = (), fail: Callable[[Batch], str] = lambda batch: "", factor: float = 1.0
    ) -> StepPlan:
        """Plan, carry out on the mirror of the runner, complete. `ended`: requests whose next sampled token ends them."""
        plan = self.scheduler.plan(self.now_ns)
        self.plans.append(plan)
        if plan.is_empty:
            return plan
        n_bytes = [self._apply(operation) for operation in plan.operations]
        stored = tuple((o.entry, n) for o, n in zip(plan.operations, n_bytes, strict=True) if isinstance(o, StoreSlot))
        results = [self._run(batch, ended, fail(batch), factor) for batch in plan.batches]
        self.now_ns += sum(r.cost_us for r in results) * 1000
        self.events += self.scheduler.complete(plan, StepResult(tuple(results), stored), self.now_ns)
        self.scheduler.check()
        return plan

    def run(self, steps_max: int = 10_000) -> int:
        """Step until nothing is left to do; returns the number of steps."""
        for n in range(steps_max):
            if self.step().is_empty:
                return n
        raise AssertionError(f"still busy after {steps_max} steps")

    def finished(self, request_id: int) -> Finished:
        """The request's one terminal event."""
        (event,) = [e for e in self.events if isinstance(e, Finished) and e.request_id == request_id]
        return event

    def started_order(self) -> list[int]:
        return [e.request_id for e in self.events if isinstance(e, Started)]

    def assert_all_ended(self) -> None:
        """Invariants 2 and 11: one terminal event each, and no cells left."""
        ended = [e.request_id for e in self.events if isinstance(e, Finished)]
        assert sorted(ended) == sorted(self.accepted)
        assert not self.cells
        assert all(books.slots_held == 0 for books in self.scheduler.snapshot().pools.values())

    def _apply(self, operation: KvOperation) -> int:
        """Carry out one operation on the mirror. Returns the bytes of a StoreSlot's entry, else 0."""
        match operation:
            case ReleaseSlot(pool, slot):
                self.cells.pop((pool, slot), None)
            case MoveSlot(pool, source, target):
                self._fill(operation, target, *self.cells.pop((pool, source)))
            case TrimSlot(pool, slot, n_cells):
                owner, held = self.cells[pool, slot]
                assert 0 <= n_cells <= held, f"{operation}, and the slot holds {held} cells"
                self.cells[pool, slot] = (owner, n_cells)
                if n_cells == 0:
                    del self.cells[pool, slot]
            case CopySlot(pool, source, target, n_cells, request_id):
                _, held = self.cells[pool, source]
                assert 0 < n_cells <= held, f"{operation}, and the source holds {held} cells"
                self._fill(operation, target, request_id, n_cells)
            case StoreSlot(pool, slot, entry, n_cells):
                owner, held = self.cells[pool, slot]
                assert 0 < n_cells == held, f"{operation}, and the slot holds {held} cells"
                assert entry not in self.entries, f"{operation}: the entry is there already"
                self.entries[entry] = (pool, owner, n_cells)
                return n_cells * STORED_CELL_BYTES
            case LoadSlot(pool, slot, entry, n_cells, request_id):
                came_from, _, held = self.entries[entry]
                assert pool == came_from, f"{operation}, and the entry comes from pool {came_from}"
                assert 0 < n_cells <= held, f"{operation}, and the entry holds {held} cells"
                self._fill(operation, slot, request_id, n_cells)
            case DropEntry(entry):
                del self.entries[entry]
        return 0

    def _fill(self, operation: MoveSlot | CopySlot | LoadSlot, slot: int, owner: int, n_cells: int) -> None:
        """Cells arrive in a slot, which must be empty."""
        assert (operation.pool, slot) not in self.cells, f"{operation} into a slot in use"
        self.cells[operation.pool, slot] = (owner, n_cells)

    def _run(self, batch: Batch, ended: Sequence[int], failed: str, factor: float) -> BatchResult:
        slots = [c.slot for c in batch.chunks]
        assert slots == sorted(set(slots)), f"rows out of slot order: {slots}"
        shape = BatchShape()
        for chunk in batch.chunks:
            held, computed = self.cells.get((batch.pool, chunk.slot), (chunk.request_id, 0))
            # A warm slot may be taken over as it is; that its cells are counted is checked next.
            taken = held == chunk.request_id or self._has_ended(held)
            assert taken, f"slot {chunk.slot} holds request {held}, not {chunk.request_id}"
            assert chunk.start == computed, f"request {chunk.request_id} skips from {computed} to {chunk.start}"
            if not failed:
                self.cells[batch.pool, chunk.slot] = (chunk.request_id, computed + chunk.n_tokens)
            shape.add(is_prompt=chunk.is_prompt, start=chunk.start, n_tokens=chunk.n_tokens)
        ends = tuple(c.request_id for c in batch.chunks if c.sample and c.request_id in ended)
        return BatchResult(int(self._cost.predict_us(shape) * factor), ends, failed)

    def _has_ended(self, request_id: int) -> bool:
        return any(isinstance(e, Finished) and e.request_id == request_id for e in self.events)


def chunks(plan: StepPlan) -> dict[int, int]:
    """Request id to tokens planned."""
    return {c.request_id: c.n_tokens for batch in plan.batches for c in batch.chunks}
