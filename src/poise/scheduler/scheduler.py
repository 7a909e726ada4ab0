"""The scheduler: requests in, one plan a step out.

Rule 1: it is pure. No clock, I/O, logging, randomness, text or model handle. Time comes in as integer nanoseconds, cost as
        integer microseconds. The same code runs live, in the simulator and under property tests.
Rule 2: it answers every request: Queued or Rejected at once, later exactly one Finished.
Rule 3: a plan always fits. The KV books decide what may run; a shortage of slots is a normal state and means waiting.
Rule 4: between `plan` and the `complete` of that plan nothing else is called. The engine's loop drains its inbox first.
Rule 5: iteration order is always that of lists and dicts, so equal inputs give equal plans in any process.

What a step does is in `planner`; who goes first in `queues` and `fairness`; what it may cost in `budget`.
"""

from __future__ import annotations

from dataclasses import dataclass

from poise.scheduler import admission
from poise.scheduler.budget import BatchShape, CostModel
from poise.scheduler.fairness import ServedCost, split_cost
from poise.scheduler.kv import KvPool, PoolBooks
from poise.scheduler.plan import Batch, BatchResult, KvOperation, MoveSlot, ReleaseSlot, StepPlan, StepResult
from poise.scheduler.planner import Books, PlanningPass, batch_shares
from poise.scheduler.policy import CostPrior, SchedulerPolicy
from poise.scheduler.queues import WaitingQueue, order_key
from poise.scheduler.request import (
    Event,
    Finished,
    FinishReason,
    Queued,
    Rejected,
    RejectReason,
    Request,
    RequestClass,
    Started,
)
from poise.scheduler.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class ClassSnapshot:
    n_waiting: int
    n_running: int
    wait_estimate_us: int
    served_us: dict[str, int]
    """Virtual counters of the class's active tenants."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Levels at one moment. Safe to keep: nothing in it changes later."""

    step: int
    n_accepted: int
    n_finished: int
    n_moves: int
    classes: dict[RequestClass, ClassSnapshot]
    pools: dict[str, PoolBooks]


class Scheduler:
    """See the module's text for the rules. Request ids are unique for the scheduler's life."""

    def __init__(self, policy: SchedulerPolicy) -> None:
        models = {name: CostModel(policy.priors.get(name, CostPrior())) for name in policy.pools}
        served = {c: ServedCost(policy.grain_us) for c in RequestClass}
        self._policy = policy
        self._books = Books(
            policy=policy,
            pools={name: KvPool(name, pool) for name, pool in policy.pools.items()},
            queues={(c, name): WaitingQueue(served[c]) for c in RequestClass for name in policy.pools},
            served=served,
            models=models,
            running={c: {} for c in RequestClass},
        )
        self._waits = admission.WaitEstimator(models)
        self._sequences: dict[int, Sequence] = {}
        self._operations: list[KvOperation] = []
        self._started: list[Event] = []
        self._now_ns = 0
        self._step = 0
        self._n_accepted = 0
        self._n_finished = 0
        self._n_moves = 0
        self._planned: StepPlan | None = None

    def add(self, request: Request, now_ns: int) -> Queued | Rejected:
        """Take a request into its queue, or refuse it with the reason."""
        assert self._planned is None, "add between plan and complete"
        assert request.request_id not in self._sequences, f"request {request.request_id} is already here"
        limit = self._policy.classes[request.request_class].queue_max
        pool = admission.route(request, self._policy)
        if pool is None:
            most = admission.cells_max(self._policy.pools)
            return Rejected(request.request_id, RejectReason.TOO_LONG, request.n_cells, most)
        waiting = self._n_waiting(request.request_class)
        eta_us = self.wait_estimate_us(request.request_class)
        if waiting >= limit:
            return Rejected(request.request_id, RejectReason.QUEUE_FULL, waiting, limit, retry_after_us=eta_us)
        predicted = self._books.models[pool].chunk_us(is_prompt=True, start=0, n_tokens=request.n_prompt)
        sequence = Sequence(request, pool, now_ns, order_key(predicted, now_ns, self._policy.ageing))
        self._sequences[request.request_id] = sequence
        self._books.served[request.request_class].enter(request.tenant)
        self._books.queues[request.request_class, pool].push(sequence)
        self._n_accepted += 1
        return Queued(request.request_id, waiting + 1, eta_us)

    def abort(self, request_id: int, now_ns: int) -> list[Event]:
        """End a request in whatever state it is. Its slot is free for the very next plan. Unknown ids give no event."""
        assert self._planned is None, "abort between plan and complete"
        sequence = self._sequences.get(request_id)
        return [] if sequence is None else [self._finish(sequence, FinishReason.ABORTED)]

    def plan(self, now_ns: int) -> StepPlan:
        """Decide the next step. An empty plan means that nothing can run before the next message."""
        assert self._planned is None, "two plans without a complete"
        self._now_ns = now_ns
        self._close_holes()
        batches = PlanningPass(self._books, self._start).fill()
        operations, self._operations = tuple(self._operations), []
        plan = StepPlan(self._step, operations, batches)
        if not plan.is_empty:
            self._step += 1
            self._planned = plan
        return plan

    def complete(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        """Account for a step that was carried out. Every non-empty plan must be completed."""
        assert plan is self._planned, "complete without its plan"
        assert len(result.batches) == len(plan.batches), "results do not match the plan"
        self._planned = None
        events, self._started = self._started, []
        total_us, background_us = 0, 0
        for batch, batch_result in zip(plan.batches, result.batches, strict=True):
            total_us += batch_result.cost_us
            background_us += self._account(batch, batch_result, events)
        self._settle_background(total_us, background_us)
        return events

    def wait_estimate_us(self, request_class: RequestClass) -> int:
        """Estimated wait, until it gets a slot, of a request of the class that arrived now."""
        if self._n_waiting(request_class) == 0 and any(pool.n_free for pool in self._books.pools.values()):
            return 0
        ahead = 0.0
        for (owner, pool), queue in self._books.queues.items():
            if owner is request_class or owner is RequestClass.INTERACTIVE:
                ahead += self._waits.work_us(owner, pool, queue.prompt_tokens, queue.output_tokens)
        running = self._books.running[request_class]
        for sequence in running.values():
            left = sequence.request.max_output - sequence.n_output
            prompt = sequence.n_pending if not sequence.is_decoding else 0
            ahead += self._waits.work_us(request_class, sequence.pool, prompt, left) / len(running)
        return int(ahead)

    def snapshot(self) -> Snapshot:
        books = self._books
        return Snapshot(
            step=self._step,
            n_accepted=self._n_accepted,
            n_finished=self._n_finished,
            n_moves=self._n_moves,
            classes={
                c: ClassSnapshot(
                    n_waiting=self._n_waiting(c),
                    n_running=len(books.running[c]),
                    wait_estimate_us=self.wait_estimate_us(c),
                    served_us=dict(books.served[c].tenants),
                )
                for c in RequestClass
            },
            pools={name: pool.books() for name, pool in books.pools.items()},
        )

    def check(self) -> None:
        """Assert every invariant that can be seen from inside. Linear; for tests, the simulator and idle moments."""
        books = self._books
        for pool in books.pools.values():
            pool.check()
        for queue in books.queues.values():
            queue.check()
        for served in books.served.values():
            served.check()
        running = [s for c in RequestClass for s in books.running[c].values()]
        held = [s for pool in books.pools.values() for s in pool.holders.values()]
        assert sorted(s.request.request_id for s in running) == sorted(s.request.request_id for s in held)
        waiting = sum(queue.n_waiting for queue in books.queues.values())
        assert len(self._sequences) == waiting + len(running), "a request is neither waiting nor running"
        assert self._n_accepted == self._n_finished + len(self._sequences), "a request was lost"
        for sequence in running:
            assert 0 <= sequence.n_computed < sequence.n_tokens, f"{sequence} has nothing to compute"

    def _n_waiting(self, request_class: RequestClass) -> int:
        return sum(queue.n_waiting for (owner, _), queue in self._books.queues.items() if owner is request_class)

    def _start(self, sequence: Sequence) -> None:
        """Give a waiting sequence its slot."""
        request = sequence.request
        self._books.pools[sequence.pool].take(sequence)
        sequence.to(State.RUNNING)
        self._books.queues[request.request_class, sequence.pool].remove(sequence)
        self._books.running[request.request_class][request.request_id] = sequence
        wait_us = max(0, self._now_ns - sequence.arrived_ns) // 1000
        self._started.append(Started(request.request_id, sequence.pool, wait_us))

    def _finish(self, sequence: Sequence, reason: FinishReason, detail: str = "") -> Finished:
        request = sequence.request
        was_running = sequence.state is State.RUNNING
        sequence.to(State.FINISHED)
        if was_running:
            slot = self._books.pools[sequence.pool].release(sequence)
            self._operations.append(ReleaseSlot(sequence.pool, slot, request.request_id))
            del self._books.running[request.request_class][request.request_id]
        else:
            self._books.queues[request.request_class, sequence.pool].remove(sequence)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self._waits.learn(request, sequence.n_output)
        self._books.served[request.request_class].leave(request.tenant)
        del self._sequences[request.request_id]
        self._n_finished += 1
        return Finished(request.request_id, reason, request.n_prompt, sequence.n_output, sequence.served_us, detail)

    def _close_holes(self) -> None:
        """Rule R8. Pending releases are already in the list, so the target is empty when the move is applied."""
        for name, pool in self._books.pools.items():
            if (move := pool.close_hole(self._policy.hole_steps)) is not None:
                sequence, source, target = move
                self._operations.append(MoveSlot(name, source, target, sequence.request.request_id))
                self._n_moves += 1

    def _account(self, batch: Batch, result: BatchResult, events: list[Event]) -> int:
        """Charge a batch's cost, advance its sequences; returns what background work cost."""
        shape = BatchShape()
        for chunk in batch.chunks:
            shape.add(is_prompt=chunk.is_prompt, start=chunk.start, n_tokens=chunk.n_tokens)
        costs = split_cost(result.cost_us, batch_shares(batch, self._books.models))
        if not result.failed:
            self._books.models[batch.pool].observe(shape, result.cost_us)
        background_us = 0
        for chunk, cost_us in zip(batch.chunks, costs, strict=True):
            sequence = self._sequences[chunk.request_id]
            request = sequence.request
            sequence.served_us += cost_us
            self._books.served[request.request_class].charge(request.tenant, cost_us)
            if request.request_class is RequestClass.BACKGROUND:
                background_us += cost_us
            if result.failed:
                events.append(self._finish(sequence, FinishReason.FAILED, result.failed))
                continue
            sequence.n_computed += chunk.n_tokens
            if not chunk.sample:
                continue
            if chunk.request_id in result.ended:
                events.append(self._finish(sequence, FinishReason.STOP))
                continue
            sequence.n_tokens += 1
            if sequence.n_output == request.max_output:
                events.append(self._finish(sequence, FinishReason.LENGTH))
        return background_us

    def _settle_background(self, total_us: int, background_us: int) -> None:
        """Rule R4's account: while both classes have work, background is owed its share of every step."""
        books = self._books
        if not (books.is_live(RequestClass.INTERACTIVE) and books.is_live(RequestClass.BACKGROUND)):
            books.background_credit_us = 0.0
            return
        background = self._policy.classes[RequestClass.BACKGROUND]
        owed = background.min_share * total_us - background_us
        bound = float(background.itl_target_us)
        books.background_credit_us = min(4 * bound, max(-bound, books.background_credit_us + owed))
