"""The scheduler: requests in, one plan a step out.

Rule 1: it is pure. No clock, I/O, logging, randomness, text or model handle. Time comes in as integer nanoseconds, cost as
        integer microseconds. The same code runs live, in the simulator and under property tests.
Rule 2: it answers every request: Queued or Rejected at once, later exactly one Finished.
Rule 3: a plan always fits. The KV books decide what may run; a shortage of slots is a normal state: it means waiting, or that
        somebody else is preempted.
Rule 4: between `plan` and the `complete` of that plan nothing else is called. The engine's loop drains its inbox first.
Rule 5: iteration order is always that of lists and dicts, so equal inputs give equal plans in any process.

What a step does is in `planner`; who goes first in `queues` and `fairness`; what it may cost in `budget`, and who pays for it in
`charging`; who loses a slot in `preemption`; where cells are in `placement`; the states of a request in `sequence`.
docs/scheduler.md tells the whole."""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from poise.scheduler import admission
from poise.scheduler.bottleneck import Bottleneck, Limit, limit_of
from poise.scheduler.charging import charge_step
from poise.scheduler.fairness.accounts import Account, forget_account, remembered_accounts, restore_accounts
from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.fairness.tenants import TenantBooks
from poise.scheduler.lengths import OutputLengths
from poise.scheduler.lifecycle import Lifecycle
from poise.scheduler.planning.books import Books
from poise.scheduler.planning.budget import CostModel
from poise.scheduler.planning.plan import Batch, StepPlan, StepResult
from poise.scheduler.planning.planner import PlanningPass
from poise.scheduler.planning.preemption import Preemption
from poise.scheduler.planning.survival import LastingPlacement
from poise.scheduler.policy import CostPrior, DraftPolicy, SchedulerPolicy
from poise.scheduler.power import FULL_PPM, Background, Duty, PowerLimits
from poise.scheduler.queues import WaitingQueue, order_key
from poise.scheduler.request import Control, Event, FinishReason, Hold, Queued, Rejected, RejectReason, Request, RequestClass
from poise.scheduler.sequence import Sequence
from poise.scheduler.snapshot import ClassStatus, Snapshot
from poise.scheduler.totals import Totals
from poise.scheduler.waits import WaitEstimator, positions

DEADLINES_SPARE = 64
"""So many deadlines may be there, beyond two for each live request, before those that nobody waits for any more go."""


class Scheduler:
    """See the module's text for the rules. Request ids are unique for the scheduler's life."""

    def __init__(self, policy: SchedulerPolicy) -> None:
        models = {name: CostModel(policy.priors.get(name, CostPrior())) for name in policy.pools}
        totals, tenants = Totals(), TenantBooks(policy)
        self.served = served = {c: ServedCost(policy.grain_us, tenants.weight) for c in RequestClass}
        """The virtual counters by class, for whoever watches. Not to be modified."""
        self._policy = policy
        self._placement = self.placement = LastingPlacement(policy, models, totals, self._turned)
        """What of the host store outlives an engine is asked and told here, by whoever carries plans out."""
        self._books = Books(
            policy=policy,
            pools=self._placement.pools,
            queues={(c, name): self._queue_of(c) for c in RequestClass for name in policy.pools},
            served=served,
            models=models,
            tenants=tenants,
            running={c: {} for c in RequestClass},
            limits=dict(policy.classes),
        )
        self._waits = WaitEstimator(models, OutputLengths(policy.lengths))
        self._life = Lifecycle(self._books, self._placement, self._waits, totals)
        self._preemption = Preemption(policy, served)
        self._bottleneck = Bottleneck()
        self._deadlines: list[tuple[int, int]] = []
        self._duty = Duty()
        self._shares, self._step = (1.0, 1.0), 0
        self._planned: StepPlan | None = None

    @property
    def declared(self) -> Collection[str]:
        """Tenants that have a section of their own in the policy."""
        return self._policy.tenants.keys()

    @property
    def drafts(self) -> DraftPolicy:
        """Whether anybody drafts, and how much."""
        return self._policy.drafts

    @property
    def sequences(self) -> Mapping[int, Sequence]:
        """Live requests, to be looked at."""
        return self._life.sequences

    def add(self, request: Request, now_ns: int) -> Queued | Rejected:
        """Take a request into its queue, or refuse it with the reason."""
        assert self._planned is None, "add between plan and complete"
        cached = {name: self._placement.reusable.cached_prompt(request, name) for name in self._policy.pools}
        n_likely = self._waits.lengths.likely(request)
        pool = admission.route(request, self._policy, cached, n_likely)
        if pool is None:
            most = admission.cells_max(self._policy.pools)
            return Rejected(request.request_id, RejectReason.TOO_LONG, request.n_known, most)
        eta_us = self.wait_estimate_us(request.request_class)
        if not (request.pins or request.readmitted):
            refusal = self._refusal(request, eta_us, now_ns)
            if refusal is not None:
                return refusal
        sequence = Sequence(request, pool, now_ns, 0.0, eta_us, n_likely)
        sequence.order_key = self._order(sequence)
        self._life.enter(sequence, now_ns)
        if request.queue_timeout_us and not request.readmitted:
            sequence.deadline_ns = now_ns + request.queue_timeout_us * 1000
            self._watch_deadline(sequence)
        queued = Queued(request.request_id, self._n_new(request.request_class), eta_us, int(self._prompt_us(sequence)))
        if request.prepares:
            self._life.prepare(sequence)
        return queued

    def prepared(self, request_id: int, now_ns: int) -> list[Event]:
        """What a request that `prepares` needs is made: it goes to its place in the queue, by when it came."""
        sequence = self._found(request_id, now_ns)
        return [] if sequence is None else self._life.prepared(sequence)

    def abort(self, request_id: int, now_ns: int) -> list[Event]:
        """End a request in whatever state it is. Its slot is free for the very next plan. Unknown ids give no event."""
        sequence = self._found(request_id, now_ns)
        return [] if sequence is None else [self._life.finish(sequence, FinishReason.ABORTED)]

    def expire(self, now_ns: int) -> list[Event]:
        """End the requests whose queue timeout has passed before they got a slot. Called before each plan.

        While its reader is behind, a request's time stands still."""
        assert self._planned is None, "expire between plan and complete"
        events: list[Event] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            when_ns, request_id = heapq.heappop(self._deadlines)
            sequence = self._life.sequences.get(request_id)
            if sequence is None or sequence.started or sequence.hold is not Hold.RUN:
                continue
            if sequence.deadline_ns == when_ns:
                events.append(self._life.finish(sequence, FinishReason.EXPIRED))
        return events

    def control(self, request_id: int, action: Control, now_ns: int) -> tuple[str, str, list[Event]]:
        """An operator's word on a live request. Returns its state afterwards, why nothing changed (if so), and events.

        The state of an unknown request is ""."""
        sequence = self._found(request_id, now_ns)
        if sequence is None:
            return "", "there is no such live request", []
        detail, events = self._life.control(sequence, action)
        return sequence.state.value, detail, events

    def hold(self, request_id: int, hold: Hold, now_ns: int) -> list[Event]:
        """The reader of a request is behind, or has caught up. Unknown ids give no event.

        It runs only when neither its reader nor an operator keeps it from it. Held, it keeps its place in the order, does not
        expire, and counts nowhere as work; its slot goes to whoever needs one, or with SWAP at once."""
        sequence = self._found(request_id, now_ns)
        if sequence is None:
            return []
        events = self._life.hold(sequence, hold)
        if hold is Hold.RUN and sequence.deadline_ns and not sequence.started:
            self._watch_deadline(sequence)
        return events

    def adjust(self, queue_share: float, slots_share: float) -> None:
        """From now on classes may use these shares of their `queue_max` and `slots_max`, at least 1 of each.

        What is queued or runs beyond them stays."""
        assert self._planned is None, "adjust between plan and complete"
        assert 0 < queue_share <= 1, f"a share of {queue_share}"
        assert 0 < slots_share <= 1, f"a share of {slots_share}"
        self._shares = (queue_share, slots_share)
        self._lower()

    def limit(self, power: PowerLimits) -> None:
        """From now on no more than this may be used. Requests that run beyond it go on; background is put away if it says so."""
        assert self._planned is None, "limit between plan and complete"
        if power.store_ppm != self._books.power.store_ppm:
            self._placement.shrink(self._policy.store.budget_bytes * power.store_ppm // FULL_PPM)
        self._books.power = power
        self._lower()

    def _lower(self) -> None:
        """The limits of classes as they are now; costs that were learnt are part of them."""
        books, itl_us = self._books, self._policy.classes[RequestClass.INTERACTIVE].itl_target_us
        rows = [books.power.rows(itl_us, model.fixed_us, model.decode_us) for model in books.models.values()]
        books.row_limit = min(rows)
        books.limits = admission.lowered(self._policy.classes, *self._shares, books.row_limit)

    def accounts(self, now_ns: int) -> list[Account]:
        """What a scheduler after this one has to know of accounts; without those of erased tenants. Modifies nothing."""
        erased = {s.request.tenant for s in self._life.sequences.values() if s.erased}
        return remembered_accounts(self._books.served, self._books.tenants, erased, now_ns)

    def restore(self, known: Iterable[Account], at_ns: int) -> None:
        """Go on with the accounts of a scheduler before this one as they were at `at_ns`."""
        assert self._planned is None, "restore between plan and complete"
        restore_accounts(self._books.served, self._books.tenants, known, at_ns)

    def erase(self, tenant: str) -> tuple[int, int, int]:
        """As `forget`, and have every cell overwritten that nobody holds. Returns how many prefixes, cells and bytes go.

        The tenant's live requests go on; what they hold goes the same way when they end, and nothing of it is kept."""
        assert self._planned is None, "erase between plan and complete"
        for sequence in self._life.sequences.values():
            sequence.erased |= sequence.request.tenant == tenant
        n_bytes = self._placement.kept_bytes(tenant)
        dropped = self._placement.forget(tenant)
        self._placement.scrub()
        self._waits.lengths.forget(tenant)
        forget_account(self._books.served, self._books.tenants, tenant)
        return *dropped, n_bytes

    def forget(self, tenant: str) -> tuple[int, int]:
        """Drop every prefix kept for a tenant; returns how many, and their cells. Its live requests go on."""
        assert self._planned is None, "forget between plan and complete"
        return self._placement.forget(tenant)

    def retract(self, template: str) -> list[Event]:
        """Drop a template's cells, and stop computing them. Requests that name it compute what it would have spared them."""
        assert self._planned is None, "retract between plan and complete"
        pinning = [s for s in self._life.sequences.values() if s.request.pins == template]
        for pool in self._policy.pools:
            self._placement.unpin(pool, template)
        return [self._life.finish(sequence, FinishReason.ABORTED) for sequence in pinning]

    def plan(self, now_ns: int) -> StepPlan:
        """Decide the next step. An empty plan means that nothing can run before `wake_at_ns` or the next message."""
        assert self._planned is None, "two plans without a complete"
        self._life.now_ns = now_ns
        resumes_ns = self._duty.resumes_at(self._books.power.duty_ppm, now_ns)
        if resumes_ns is not None and self._life.sequences:
            self._bottleneck.note(Limit.POWER, now_ns)
            # A pause of computing: what was freed, erased or made smaller is so at once.
            return self._step_of((), min([resumes_ns, *(at_ns for at_ns, _ in self._deadlines[:1])]))
        self._life.move_outgrown()
        for queue in self._books.queues.values():
            queue.bring_back()
        if self._books.power.step_us:
            self._lower()
        if self._books.power.background is Background.PARK:
            self._park()
        self._placement.close_holes()
        for victim, reason, arrival in self._preemption.claims(self._books, now_ns):
            self._life.preempt(victim, arrival, reason)
        planning = PlanningPass(self._books, self._life.place, self._placement.reusable.cached, now_ns)
        batches = planning.fill()
        n_held = sum(not sequence.paused for sequence in self._life.paused.values())
        limit = limit_of(self._books, batches, self._life.sequences, planning.target_us, n_held)
        self._bottleneck.note(limit, now_ns)
        self._placement.write_through(planning.budget.left_us if batches else None)
        return self._step_of(batches, self._deadlines[0][0] if self._deadlines else None)

    def _step_of(self, batches: tuple[Batch, ...], wake_at_ns: int | None) -> StepPlan:
        plan = StepPlan(self._step, self._placement.take_operations(), batches, wake_at_ns)
        if not plan.is_empty:
            self._step, self._planned = self._step + 1, plan
        return plan

    def complete(self, plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        """Account for a step that was carried out. Every non-empty plan must be completed."""
        assert plan is self._planned, "complete without its plan"
        assert len(result.batches) == len(plan.batches), "results do not match the plan"
        self._planned = None
        life = self._life
        life.now_ns = now_ns
        self._duty.worked(now_ns, result.busy_ns)
        life.lose(self._placement.settle(result), result.lost)
        events = life.take_events()
        for request_id, key in result.blocks:
            life.sequences[request_id].blocks.append(key)
        charge_step(self._books, life, plan, result, events)
        for request_id, n_guesses, n_matched in result.guesses:
            if (sequence := life.sequences.get(request_id)) is not None:
                sequence.n_guesses, sequence.n_matched = n_guesses, n_matched
        for served in self._books.served.values():
            served.roll(now_ns)
        return events

    def wait_estimate_us(self, request_class: RequestClass) -> int:
        """Estimated wait, until it gets a slot, of a request of the class that arrived now."""
        books = self._books
        has_rows = books.has_rows(request_class)
        if self._n_new(request_class) == 0 and has_rows and any(pool.n_free for pool in books.pools.values()):
            return 0
        limits = books.limits[request_class]
        left = {
            name: has_rows * min(pool.n_free, admission.slots_max(self._policy.pools, name, limits) - pool.held_by(request_class))
            for name, pool in books.pools.items()
        }
        return books.power.stretched(self._waits.estimate_us(request_class, books.queues, books.running[request_class], left))

    def positions(self) -> list[Queued]:
        """Where each new request stands in its class's queue, the classes one after the other. Sorts what is queued."""
        return positions(self._books, self.wait_estimate_us)

    def snapshot(self) -> Snapshot:
        totals = self._life.totals
        return Snapshot(
            step=self._step,
            n_moves=self._placement.n_moves,
            totals=replace(totals, preemptions=dict(totals.preemptions), draft_tokens=dict(totals.draft_tokens)),
            classes={c: self._class_snapshot(c) for c in RequestClass},
            pools={name: pool.books() for name, pool in self._books.pools.items()},
            store=self._placement.store.books(),
            limit=self._bottleneck.limit,
            limit_since_ns=self._bottleneck.since_ns or 0,
            limited_ns=dict(self._bottleneck.limited_ns),
        )

    def _queue_of(self, request_class: RequestClass) -> WaitingQueue:
        heavy_tokens = self._policy.classes[request_class].heavy_tokens
        return WaitingQueue(self.served[request_class], heavy_tokens, self._placement.reusable, self._order)

    def _order(self, sequence: Sequence) -> float:
        """The place in the queue of one that has had no slot here. Who was here before comes before its tenant's new prompts."""
        predicted_us = 0.0 if sequence.request.readmitted else self._prompt_us(sequence)
        return order_key(predicted_us, sequence.arrived_ns, self._policy.ageing)

    def _prompt_us(self, sequence: Sequence) -> float:
        """What computing all of it takes that is not kept."""
        n_cached = self._placement.reusable.cached(sequence)
        model = self._books.models[sequence.pool]
        return model.chunk_us(is_prompt=True, start=n_cached, n_tokens=sequence.n_tokens - n_cached)

    def _turned(self, pool: str, keys: Iterable[int | str]) -> None:
        """What was kept of these blocks, or templates, came or went: prompts that wait may be heavy no more, or again."""
        for request_class in RequestClass:
            self._books.queues[request_class, pool].sort_again(keys)

    def _found(self, request_id: int, now_ns: int) -> Sequence | None:
        """A live request, about which something comes in now."""
        assert self._planned is None, "a message between plan and complete"
        self._life.now_ns = now_ns
        return self._life.sequences.get(request_id)

    def _refusal(self, request: Request, eta_us: int, now_ns: int) -> Rejected | None:
        """Why a request that could run is not taken: its tenant's limits, then its class's queue."""
        tenants, request_id = self._books.tenants, request.request_id
        retry_us = max(eta_us, 1_000_000)
        if (full := tenants.may_queue(request.account)) is not None:
            return Rejected(request_id, RejectReason.TENANT_QUEUE_FULL, *full, retry_after_us=retry_us)
        if (overdrawn_us := tenants.overdrawn_us(request.account, now_ns)) > 0:
            limit = self._policy.tenant(request.account).tokens_per_minute
            return Rejected(request_id, RejectReason.TENANT_RATE, request.n_prompt, limit, retry_after_us=overdrawn_us)
        queues = [queue for (owner, _), queue in self._books.queues.items() if owner is request.request_class]
        waiting, limit = sum(queue.n_new for queue in queues), self._books.limits[request.request_class].queue_max
        held = sum(queue.n_new_of(request.account) for queue in queues)
        most = admission.queue_places(held, waiting, limit, declared=request.declared)
        if held < most:
            return None
        if waiting >= limit:
            return Rejected(request_id, RejectReason.QUEUE_FULL, waiting, limit, retry_after_us=retry_us)
        return Rejected(request_id, RejectReason.QUEUE_SHARE, held, most, retry_after_us=retry_us)

    def _watch_deadline(self, sequence: Sequence) -> None:
        """Those of requests that have started or ended go when they are most of what is watched."""
        live = self._life.sequences
        if len(self._deadlines) > 2 * len(live) + DEADLINES_SPARE:
            self._deadlines = sorted((s.deadline_ns, i) for i, s in live.items() if s.deadline_ns and not s.started)
        heapq.heappush(self._deadlines, (sequence.deadline_ns, sequence.request.request_id))

    def _n_new(self, request_class: RequestClass) -> int:
        return sum(queue.n_new for (owner, _), queue in self._books.queues.items() if owner is request_class)

    def _class_snapshot(self, request_class: RequestClass) -> ClassStatus:
        queues = [queue for (owner, _), queue in self._books.queues.items() if owner is request_class]
        n_new = sum(queue.n_new for queue in queues)
        served = self._books.served[request_class]
        return ClassStatus(
            queued=n_new,
            running=len(self._books.running[request_class]),
            wait_estimate_us=self.wait_estimate_us(request_class),
            paused=sum(s.request_class is request_class for s in self._life.paused.values()),
            swapped=sum(queue.n_queued for queue in queues) - n_new,
            wait_error=round(self._waits.error[request_class], 4),
            served_us=served.total_us,
            jain=round(served.recent.jain(), 4),
            gap_us=served.gap_us(self._backlogged(request_class, queues)),
            prompt_us=round(max(model.prompt_us for model in self._books.models.values()), 1),
        )

    def _backlogged(self, request_class: RequestClass, queues: list[WaitingQueue]) -> list[str]:
        """Tenants of which something waits: for a slot, or with one for the rest of its prompt."""
        computing = self._books.running[request_class].values()
        waiting = {s.request.account: None for s in computing if not s.is_decoding}
        for queue in queues:
            waiting |= dict.fromkeys(queue.tenants)
        return list(waiting)

    def _park(self) -> None:
        """Background work leaves its slots; what becomes background later, too."""
        for pool in self._books.pools.values():
            for sequence in [s for s in pool.holders.values() if s.request_class is RequestClass.BACKGROUND]:
                self._life.park(sequence)
