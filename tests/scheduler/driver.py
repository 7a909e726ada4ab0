"""Drives a scheduler through steps of a made-up machine and checks its promises after each one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from poise.scheduler.bottleneck import Limit
from poise.scheduler.planning.budget import BatchShape, CostModel
from poise.scheduler.planning.plan import (
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
from poise.scheduler.policy import (
    LONG_POOL,
    SHORT_POOL,
    ClassPolicy,
    CostPrior,
    PoolPolicy,
    SchedulerPolicy,
    StorePolicy,
    TenantPolicy,
)
from poise.scheduler.request import BLOCK_TOKENS, Control, Event, Finished, Hold, Queued, Rejected, Request, RequestClass, Started
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.sequence import Sequence as SequenceState
from poise.scheduler.sequence import State
from tests.scheduler.books import check_scheduler

INTERACTIVE, BACKGROUND = RequestClass.INTERACTIVE, RequestClass.BACKGROUND


def policy(
    *,
    slots: int = 10,
    slot_cells: int = 4096,
    long_slots: int = 2,
    queue_max: int = 64,
    min_share: float = 0.15,
    background_slots: int = 6,
    heavy_max: int = 1,
    interactive_heavy_max: int = 0,
    heavy_tokens: int = 1024,
    chunk_tokens: int = 0,
    hole_steps: int = 2,
    ageing: float = 0.1,
    itl_us: int = 100_000,
    turn_us: int = 2_000_000,
    preemptions_max: int = 8,
    store: StorePolicy | None = None,
    tenants: Mapping[str, TenantPolicy] | None = None,
    grain_us: int = 500_000,
    downgrade_output_tokens: int = 0,
    downgrade_served_us: int = 0,
) -> SchedulerPolicy:
    """The default policy, with what a test wants otherwise."""
    return SchedulerPolicy(
        pools={
            SHORT_POOL: PoolPolicy(slots, slot_cells, cell_bytes=CELL_BYTES),
            LONG_POOL: PoolPolicy(long_slots, 2 * slot_cells, cell_bytes=CELL_BYTES),
        },
        classes={
            INTERACTIVE: ClassPolicy(
                queue_max,
                itl_us,
                0.0,
                slots,
                heavy_tokens,
                interactive_heavy_max or long_slots,
                downgrade_output_tokens,
                downgrade_served_us,
            ),
            BACKGROUND: ClassPolicy(queue_max, itl_us * 3 // 2, min_share, background_slots, heavy_tokens, heavy_max),
        },
        chunk_tokens={LONG_POOL: chunk_tokens} if chunk_tokens else {},
        hole_steps=hole_steps,
        ageing=ageing,
        priors=dict.fromkeys((SHORT_POOL, LONG_POOL), COST),
        turn_us=turn_us,
        preemptions_max=preemptions_max,
        store=store or StorePolicy(),
        tenants=tenants or {},
        grain_us=grain_us,
    )


CELL_BYTES = 100
COST = CostPrior(fixed_us=3000, decode_us=5000, prompt_us=4000, attended_us=0.5)


@dataclass
class Driver:
    """One scheduler and a machine that costs what COST says. `cells` mirrors what the runner would hold."""

    scheduler: Scheduler
    now_ns: int = 0
    events: list[Event] = field(default_factory=list)
    plans: list[StepPlan] = field(default_factory=list)
    cells: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    """(pool, slot) to (request id, cells computed)."""
    entries: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    """Entry of the host store to (pool, request id, cells)."""
    accepted: dict[int, Request] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    """Requests whose cells the present step could not carry."""
    check_every: int = 1
    """After so many changes every invariant is looked at, which takes longer than a change. Books that are wrong stay wrong."""
    _n_changes: int = 0
    _next_id: int = 1
    _cost: CostModel = field(default_factory=lambda: CostModel(COST))

    def add(
        self, n_prompt: int = 50, max_output: int = 10, tenant: str = "a", request_class: RequestClass = INTERACTIVE, **more: Any
    ) -> int:
        """Add a request that must be accepted; returns its id."""
        request_id = self._next_id
        answer = self.offer(n_prompt, max_output, tenant, request_class, **more)
        assert isinstance(answer, Queued), answer
        return request_id

    def offer(
        self, n_prompt: int = 50, max_output: int = 10, tenant: str = "a", request_class: RequestClass = INTERACTIVE, **more: Any
    ) -> Queued | Rejected:
        request = Request(self._next_id, tenant, request_class, n_prompt, max_output, **more)
        self._next_id += 1
        answer = self.scheduler.add(request, self.now_ns)
        if isinstance(answer, Queued):
            self.accepted[request.request_id] = request
        self._changed()
        return answer

    def abort(self, request_id: int) -> list[Event]:
        events = self.scheduler.abort(request_id, self.now_ns)
        self.events += events
        self._changed()
        return events

    def control(self, request_id: int, action: Control) -> str:
        """An operator's word; returns why nothing changed, if so."""
        _, detail, events = self.scheduler.control(request_id, action, self.now_ns)
        self.events += events
        self._changed()
        return detail

    def hold(self, request_id: int, level: Hold) -> list[Event]:
        """Its reader is behind, or has caught up; returns what came of it."""
        events = self.scheduler.hold(request_id, level, self.now_ns)
        self.events += events
        self._changed()
        return events

    def events_of(self, request_id: int, kind: type[Event]) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind) and e.request_id == request_id]

    def step(
        self,
        ended: Sequence[int] = (),
        fail: Callable[[Batch], str] = lambda batch: "",
        factor: float = 1.0,
        break_carrying: bool = False,
    ) -> StepPlan:
        """Plan, carry out on the mirror of the runner, complete.

        `ended`: requests whose next sampled token ends them. `break_carrying`: every store, load, copy and move fails.
        """
        self.events += self.scheduler.expire(self.now_ns)
        decoding = [s for s in self.scheduler._books.running[INTERACTIVE].values() if s.is_decoding]
        heavy = self._heavy()
        plan = self.scheduler.plan(self.now_ns)
        self.plans.append(plan)
        self._assert_decoded(decoding, plan)
        self._assert_few_are_heavy(heavy)
        if plan.is_empty:
            return plan
        self.lost, unstored = [], list[int]()
        stored = [self._carry(operation, break_carrying, unstored) for operation in plan.operations]
        results = [self._run(batch, ended, fail(batch), factor) for batch in plan.batches]
        self.now_ns += sum(r.cost_us for r in results) * 1000
        result = StepResult(
            tuple(results),
            tuple(s for s in stored if s is not None),
            tuple(unstored),
            tuple(self.lost),
            self._blocks(plan, results),
        )
        self.events += self.scheduler.complete(plan, result, self.now_ns)
        self._changed(stepped=True)
        return plan

    def run(self, steps_max: int = 10_000) -> int:
        """Step until nothing is left to do; returns the number of steps."""
        for n in range(steps_max):
            if self.step().is_empty:
                return n
        raise AssertionError(f"still busy after {steps_max} steps")

    @property
    def live(self) -> set[int]:
        """Accepted requests that have not ended."""
        return set(self.accepted) - {e.request_id for e in self.events if isinstance(e, Finished)}

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
        warm = {(p, slot) for p, pool in self.scheduler._placement.pools.items() for slot in pool.warm}
        assert set(self.cells) == warm
        assert all(books.slots_held == 0 for books in self.scheduler.snapshot().pools.values())

    def _changed(self, *, stepped: bool = False) -> None:
        self._n_changes += 1
        if self._n_changes % self.check_every == 0:
            check_scheduler(self.scheduler)
            if stepped:
                self._assert_mirrored()

    def _assert_mirrored(self) -> None:
        """Invariant 3: what the books say is what the runner holds once pending operations are done. Here: held slots."""
        placement = self.scheduler._placement
        expected = {entry.number for entry in placement.store}
        for operation in reversed(placement._operations):  # these wait for the next plan
            if isinstance(operation, DropEntry):
                expected.add(operation.entry)
            elif isinstance(operation, StoreSlot):
                expected.remove(operation.entry)
        assert set(self.entries) == expected
        for name, pool in placement.pools.items():
            for slot, sequence in pool.holders.items():
                _, n_cells = self.cells.get((name, slot), (0, 0))
                assert n_cells == sequence.n_computed, f"slot {slot} of {name} has {n_cells} cells, the books differ"

    def _assert_decoded(self, decoding: list[SequenceState], plan: StepPlan) -> None:
        """R1: a step leaves no interactive decode out, unless its slot was taken. A pause for the duty is no step, and where
        steps have to be short, rows take turns."""
        if self.scheduler._books.power.step_us:
            return
        if plan.is_empty and self.scheduler.snapshot().limit is Limit.POWER:
            return
        planned = chunks(plan)
        for sequence in decoding:
            if sequence.state is State.RUNNING:
                assert sequence.request.request_id in planned, f"{sequence} was left out"

    def _heavy(self) -> dict[RequestClass, set[int]]:
        """By class, the requests whose slots heavy prompts take."""
        books = self.scheduler._books
        return {c: {i for i, s in running.items() if books.is_heavy(s)} for c, running in books.running.items()}

    def _assert_few_are_heavy(self, before: dict[RequestClass, set[int]]) -> None:
        """R5: nobody gets a slot for a heavy prompt beside `heavy_max` others of its class. (A lost state can make more so.)"""
        for request_class, heavy in self._heavy().items():
            most = self.scheduler._policy.classes[request_class].heavy_max
            assert len(heavy) <= most or heavy <= before[request_class], f"{len(heavy)} heavy prompts of {request_class}"

    def _blocks(self, plan: StepPlan, results: list[BatchResult]) -> tuple[tuple[int, int], ...]:
        """Keys of the blocks that sampled tokens completed: after equal prompts come equal answers."""
        keys = []
        for batch, result in zip(plan.batches, results, strict=True):
            for chunk in batch.chunks:
                if chunk.sample and not result.failed and chunk.request_id not in (*result.ended, *self.lost):
                    n_tokens = chunk.start + chunk.n_tokens + 1
                    said = self.scheduler._life.sequences[chunk.request_id].blocks
                    if said and n_tokens % BLOCK_TOKENS == 0:
                        keys.append((chunk.request_id, key(f"after {said[-1]}", n_tokens)))
        return tuple(keys)

    def _carry(self, operation: KvOperation, broken: bool, unstored: list[int]) -> tuple[int, int] | None:
        """`_apply`, or its failure, as `poise.engine.execution` tells it."""
        if isinstance(operation, DropEntry | LoadSlot) and operation.entry in unstored:
            if isinstance(operation, LoadSlot):
                self.lost.append(operation.request_id)
            return None
        if broken and isinstance(operation, StoreSlot):
            unstored.append(operation.entry)
            return None
        if broken and isinstance(operation, LoadSlot | CopySlot | MoveSlot):
            self.lost.append(operation.request_id)
            if isinstance(operation, MoveSlot):
                del self.cells[operation.pool, operation.source]
            return None
        return self._apply(operation)

    def _apply(self, operation: KvOperation) -> tuple[int, int] | None:
        """The operation on the mirror; for a StoreSlot, the entry and its bytes."""
        if isinstance(operation, DropEntry):
            del self.entries[operation.entry]
            return None
        pool = operation.pool
        match operation:
            case ReleaseSlot():
                self.cells.pop((pool, operation.slot), None)
            case TrimSlot():
                held, n_cells = self.cells[pool, operation.slot]
                assert operation.n_cells <= n_cells, operation
                self.cells[pool, operation.slot] = (held, operation.n_cells)
            case MoveSlot():
                self._fill(pool, operation.target, self.cells.pop((pool, operation.source)))
            case CopySlot():
                assert operation.n_cells <= self.cells[pool, operation.source][1], operation
                self._fill(pool, operation.target, (operation.request_id, operation.n_cells))
            case StoreSlot():
                held, n_cells = self.cells[pool, operation.slot]
                assert operation.n_cells == n_cells, operation
                assert operation.entry not in self.entries, operation
                self.entries[operation.entry] = (pool, held, n_cells)
                return operation.entry, n_cells * CELL_BYTES
            case LoadSlot():
                origin, _, n_cells = self.entries[operation.entry]
                assert origin == pool, operation
                assert operation.n_cells <= n_cells, operation
                self._fill(pool, operation.slot, (operation.request_id, operation.n_cells))
        return None

    def _fill(self, pool: str, slot: int, held: tuple[int, int]) -> None:
        assert (pool, slot) not in self.cells, f"slot {slot} of {pool} is in use"
        self.cells[pool, slot] = held

    def _run(self, batch: Batch, ended: Sequence[int], failed: str, factor: float) -> BatchResult:
        slots = [c.slot for c in batch.chunks]
        assert slots == sorted(set(slots)), f"rows out of slot order: {slots}"
        shape = BatchShape()
        for chunk in batch.chunks:
            if chunk.request_id in self.lost:
                continue
            held, computed = self.cells.get((batch.pool, chunk.slot), (chunk.request_id, 0))
            # A slot whose warm cells are taken over in place changes its owner without an operation.
            assert held == chunk.request_id or held not in self.live, f"slot {chunk.slot} holds request {held}"
            assert chunk.start == computed, f"request {chunk.request_id} skips from {computed} to {chunk.start}"
            if not failed:
                self.cells[batch.pool, chunk.slot] = (chunk.request_id, computed + chunk.n_tokens)
            shape.add(is_prompt=chunk.is_prompt, start=chunk.start, n_tokens=chunk.n_tokens)
        ends = tuple(c.request_id for c in batch.chunks if c.sample and c.request_id in ended and c.request_id not in self.lost)
        return BatchResult(int(self._cost.predict_us(shape) * factor), ends, failed)


def key(text: str, depth: int) -> int:
    """The key of a made-up text's block; the same text, the same key."""
    return crc32(f"{text} {depth}".encode())


def blocks(text: str, n_tokens: int) -> tuple[int, ...]:
    """Keys of the whole blocks of a prompt that says `text`."""
    return tuple(key(text, depth) for depth in range(n_tokens // BLOCK_TOKENS))


def chunks(plan: StepPlan) -> dict[int, int]:
    """Request id to tokens planned."""
    return {c.request_id: c.n_tokens for batch in plan.batches for c in batch.chunks}
