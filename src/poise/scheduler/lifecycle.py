"""The life of each request in the scheduler: every change of state, with all the books that change with it.

Enter, get a slot, lose it, stand still, go on, change class, advance, end: each is one method, so that queues, slots, tenants'
counts and counters can only change together.

A sequence stands still while an operator has paused it, its reader is behind, or it is not prepared. It then counts nowhere as
work: not for its tenant's served cost, not as decoding, not for the wait of others; and its slot is the first to be taken. It
keeps its place in the order, because a place is what it would cost and when it arrived."""

from collections.abc import Sequence as SequenceOf

from poise.scheduler.admission import shortest_for
from poise.scheduler.fairness.accounts import forget_account
from poise.scheduler.planning.books import Books
from poise.scheduler.planning.placement import Placement
from poise.scheduler.planning.plan import Chunk, Given
from poise.scheduler.queues import WaitingQueue, order_key
from poise.scheduler.request import (
    Control,
    Downgraded,
    DowngradeReason,
    Event,
    Finished,
    FinishReason,
    Hold,
    Preempted,
    PreemptionKind,
    PreemptionReason,
    RequestClass,
    Resumed,
    Started,
)
from poise.scheduler.sequence import Sequence, State
from poise.scheduler.totals import Totals
from poise.scheduler.waits import WaitEstimator

TIDY_EVERY = 256
"""Requests that end between two looks for tenants that have gone."""


class Lifecycle:
    """All live sequences. `now_ns` is set by the scheduler before anything else is called."""

    def __init__(self, books: Books, placement: Placement, waits: WaitEstimator, totals: Totals) -> None:
        self._books = books
        self._placement = placement
        self._waits = waits
        self.sequences: dict[int, Sequence] = {}
        self.paused: dict[int, Sequence] = {}
        self.totals = totals
        self._n_finished = 0
        self._events: list[Event] = []
        self._outgrown: list[Sequence] = []
        """Those that have filled their slot since the last plan."""

    @property
    def now_ns(self) -> int:
        return self._placement.now_ns

    @now_ns.setter
    def now_ns(self, now_ns: int) -> None:
        self._placement.now_ns = now_ns

    def take_events(self) -> list[Event]:
        """What happened since the last call that the plan's `complete` is to report."""
        events, self._events = self._events, []
        return events

    def enter(self, sequence: Sequence, now_ns: int) -> None:
        """A new request is queued."""
        request = sequence.request
        assert request.request_id not in self.sequences, f"request {request.request_id} is already here"
        self.sequences[request.request_id] = sequence
        self._books.served[sequence.request_class].enter(request.account, returns=request.readmitted)
        self._books.tenants.enter(request.account, now_ns)
        if not request.readmitted:  # else its prompt was charged when it was accepted
            self._books.tenants.charge(request.account, request.n_prompt, now_ns)
        self._queue(sequence).push(sequence)

    def place(self, sequence: Sequence) -> float:
        """A queued sequence gets a slot. Returns what carrying its cells there takes, in microseconds."""
        request, totals = sequence.request, self.totals
        self._queue(sequence).remove(sequence)
        n_before = sequence.n_computed
        carry_us = self._placement.place(sequence)
        n_found = sequence.n_computed - n_before
        sequence.to(State.RUNNING)
        self._books.running[sequence.request_class][request.request_id] = sequence
        self._books.tenants[request.account].n_running += 1
        sequence.placed_ns, sequence.n_chunks = self.now_ns, 0
        if sequence.started:
            sequence.n_recomputed -= n_found
            totals.recomputed_tokens -= n_found
            self._resumed(sequence, self._events)
            return carry_us
        sequence.started = True
        sequence.n_cached = n_found
        totals.cached_tokens += n_found
        self._books.tenants[request.account].n_queued -= 1
        wait_us = max(0, self.now_ns - sequence.arrived_ns) // 1000
        self._waits.learn_wait(request.request_class, sequence.eta_us, wait_us)
        self._events.append(Started(request.request_id, wait_us, sequence.pool, n_found))
        return carry_us

    def preempt(self, sequence: Sequence, arrival: Sequence, why: PreemptionReason) -> None:
        """The sequence gives up its slot to `arrival`, which is queued. It goes on later, after that one has started."""
        request = sequence.request
        self._events.append(self._swap_out(sequence, why))
        if sequence.state is State.PAUSED:
            return  # it stands still as before, only elsewhere
        del self._books.running[sequence.request_class][request.request_id]
        self._books.tenants[request.account].n_running -= 1
        sequence.n_preempted += 1
        sequence.away_ns = self.now_ns
        sequence.to(State.SWAPPED if sequence.entry >= 0 else State.WAITING)
        policy = self._books.policy
        if sequence.request_class is RequestClass.INTERACTIVE:
            sequence.order_key = order_key(0.0, sequence.arrived_ns, policy.ageing)  # before its tenant's new prompts
        else:
            # As if it were a new job of the length of a turn; but never before the one it made room for.
            turn = order_key(policy.turn_us, self.now_ns, policy.ageing)
            sequence.order_key = max(turn, arrival.order_key + 1.0)
        self._queue(sequence).push(sequence)

    def park(self, sequence: Sequence) -> None:
        """It gives up its slot to nobody, and keeps its place in the order: that is no turn of its own."""
        self._events.append(self._swap_out(sequence, PreemptionReason.POWER))
        if sequence.state is State.PAUSED:
            return
        del self._books.running[sequence.request_class][sequence.request.request_id]
        self._books.tenants[sequence.request.account].n_running -= 1
        sequence.away_ns = self.now_ns
        sequence.to(State.SWAPPED if sequence.entry >= 0 else State.WAITING)
        self._queue(sequence).push(sequence)

    def control(self, sequence: Sequence, action: Control) -> tuple[str, list[Event]]:
        """Returns why nothing changed, if so, and events."""
        match action:
            case Control.PAUSE:
                if sequence.paused:
                    return "it is paused already", []
                sequence.paused = True
                return "", [self._stand_still(sequence, PreemptionKind.PAUSE)]
            case Control.RESUME:
                if not sequence.paused:
                    return "it is not paused", []
                sequence.paused = False
                return "", self._go_on(sequence) if sequence.may_run else []
            case Control.DOWNGRADE:
                if sequence.request_class is RequestClass.BACKGROUND:
                    return "it is background work already", []
                return "", [self._downgrade(sequence, DowngradeReason.OPERATOR)]

    def hold(self, sequence: Sequence, hold: Hold) -> list[Event]:
        """Its reader is behind, or has caught up. What an operator said of it stands beside that."""
        before, sequence.hold = sequence.hold, hold
        events: list[Event] = []
        if hold is Hold.RUN:
            if before is Hold.RUN:
                return []
            if sequence.deadline_ns:
                sequence.deadline_ns += self.now_ns - sequence.held_ns
            if sequence.started:
                self._books.tenants[sequence.request.account].n_held -= 1
            return self._go_on(sequence) if sequence.may_run else []
        if before is Hold.RUN:
            sequence.held_ns = self.now_ns
            if sequence.started:
                self._books.tenants[sequence.request.account].n_held += 1
            events.append(self._stand_still(sequence, PreemptionKind.STALL))
        if hold is Hold.SWAP and sequence.slot >= 0:
            events.append(self._swap_out(sequence, PreemptionReason.IDLE))
        return events

    def prepare(self, sequence: Sequence) -> None:
        """It was queued, and waits until what it needs is made."""
        sequence.preparing = True
        self._set_aside(sequence)

    def prepared(self, sequence: Sequence) -> list[Event]:
        """It waits for nothing but its turn."""
        sequence.preparing = False
        return self._go_on(sequence) if sequence.may_run else []

    def advance(self, sequence: Sequence, chunk: Chunk, given: Given, events: list[Event]) -> None:
        """A chunk of the sequence was computed, and `given` is what its draw brought, if there was one."""
        request = sequence.request
        sequence.n_computed += chunk.n_tokens
        sequence.n_chunks += 1
        if chunk.sample:
            sequence.n_tokens += given.n_tokens
            sequence.n_forced = given.n_tokens - 1
            self._books.tenants.charge(request.account, given.n_tokens, self.now_ns)
            if given.ends:
                events.append(self.finish(sequence, FinishReason.LENGTH if given.cut else FinishReason.STOP))
                return
            pools = self._books.policy.pools
            is_full = sequence.n_tokens > pools[sequence.pool].slot_cells
            moves = is_full and not request.pool and shortest_for(pools, sequence.n_tokens) is not None
            if sequence.n_output == request.max_output or (is_full and not moves):
                events.append(self.finish(sequence, FinishReason.LENGTH))
                return
            if is_full:
                self._outgrown.append(sequence)
        limits = self._books.policy.classes[sequence.request_class]
        if sequence.request_class is not RequestClass.BACKGROUND:
            if 0 < limits.downgrade_output_tokens <= sequence.n_output:
                events.append(self._downgrade(sequence, DowngradeReason.OUTPUT))
            elif 0 < limits.downgrade_served_us <= sequence.served_us:
                events.append(self._downgrade(sequence, DowngradeReason.TIME))

    def move_outgrown(self) -> None:
        """Who has filled its slot goes on in a longer one. A state is of use only in the pool that it comes from, so it is
        computed again there. As each pool is longer than the one before, that happens less often than there are pools."""
        outgrown, self._outgrown = self._outgrown, []
        for sequence in outgrown:
            if sequence.state is State.FINISHED:
                continue
            self._set_aside(sequence)
            self.totals.preemptions[PreemptionKind.DROP] += 1
            self.totals.recomputed_tokens += sequence.n_computed
            self._placement.discard(sequence)
            request_id = sequence.request.request_id
            self._events.append(Preempted(request_id, PreemptionKind.DROP, PreemptionReason.OUTGROWN))
            pool = shortest_for(self._books.policy.pools, sequence.n_tokens)
            assert pool is not None, f"{sequence} has nowhere to go"
            sequence.pool = pool
            if sequence.may_run:
                self._go_on(sequence)

    def lose(self, swapped: SequenceOf[tuple[Sequence, int]], placed: SequenceOf[int]) -> None:
        """The cells of `swapped` are gone from the host store, those of `placed` from their slots: they compute them again."""
        for sequence, n_cells in swapped:
            sequence.n_recomputed += n_cells
            self.totals.recomputed_tokens += n_cells
            if sequence.state is State.SWAPPED:
                self._queue(sequence).remove(sequence)
                sequence.to(State.WAITING)
                self._queue(sequence).push(sequence)
        for request_id in placed:
            sequence = self.sequences[request_id]
            again = sequence.n_computed - sequence.n_cached  # what it had found, it had not computed
            sequence.n_recomputed += again
            self.totals.recomputed_tokens += again
            self.totals.cached_tokens -= sequence.n_cached
            sequence.n_computed = sequence.n_cached = 0

    def finish(self, sequence: Sequence, reason: FinishReason, detail: str = "") -> Finished:
        """The one terminal event."""
        request, tenants = sequence.request, self._books.tenants
        if sequence.is_queued:
            self._queue(sequence).remove(sequence)
        elif sequence.state is State.RUNNING:
            del self._books.running[sequence.request_class][request.request_id]
            tenants[request.account].n_running -= 1
        else:
            del self.paused[request.request_id]
        if not sequence.started:
            tenants[request.account].n_queued -= 1
        elif sequence.hold is not Hold.RUN:
            tenants[request.account].n_held -= 1
        ended_well = reason in (FinishReason.STOP, FinishReason.LENGTH)
        if ended_well and request.pins:
            self._placement.pin(sequence, request.pins)
        keep = not (request.pins or sequence.erased) and reason is not FinishReason.FAILED
        self._placement.retire(sequence, keep=keep)
        if sequence.state is not State.PAUSED:
            self._books.served[sequence.request_class].leave(request.account)
        sequence.to(State.FINISHED)
        if ended_well and not request.pins:
            self._waits.lengths.learn(sequence, is_whole=reason is FinishReason.STOP)
        tenants[request.account].n_live -= 1
        if sequence.erased and request.account == request.tenant:
            forget_account(self._books.served, tenants, request.account)
            self._waits.lengths.forget(request.account)
        del self.sequences[request.request_id]
        if sequence.erased and not any(s.erased and s.pool == sequence.pool for s in self.sequences.values()):
            self._placement.scrub(sequence.pool)  # once for all of them: it copies what everybody else holds
        self._n_finished += 1
        if self._n_finished % TIDY_EVERY == 0:
            tenants.tidy(self.now_ns)
        self.totals.expired += reason is FinishReason.EXPIRED
        n_output, served_us = sequence.n_output, sequence.served_us
        counts = (sequence.n_cached, sequence.n_preempted, sequence.n_recomputed)
        return Finished(request.request_id, reason, request.n_prompt, n_output, served_us, detail, *counts)

    def _queue(self, sequence: Sequence) -> WaitingQueue:
        return self._books.queues[sequence.request_class, sequence.pool]

    def _stand_still(self, sequence: Sequence, kind: PreemptionKind) -> Preempted:
        """From now on nothing is computed for it. Its cells stay where they are."""
        self._set_aside(sequence)
        self.totals.preemptions[kind] += 1
        return Preempted(sequence.request.request_id, kind)

    def _set_aside(self, sequence: Sequence) -> None:
        request = sequence.request
        if sequence.state is not State.PAUSED:
            if sequence.is_queued:
                self._queue(sequence).remove(sequence)
            else:
                del self._books.running[sequence.request_class][request.request_id]
                self._books.tenants[request.account].n_running -= 1
            self._books.served[sequence.request_class].leave(request.account)
            sequence.to(State.PAUSED)
            sequence.away_ns = self.now_ns
            self.paused[request.request_id] = sequence

    def _go_on(self, sequence: Sequence) -> list[Event]:
        """Nothing keeps it any more: it goes on in its slot, if it still has one and its tenant may run one more, or queues."""
        request, tenants = sequence.request, self._books.tenants
        events: list[Event] = []
        has_place = not (self._books.is_heavy(sequence) and self._books.rivals(sequence.request_class))
        if sequence.slot >= 0 and not (has_place and tenants.may_run(request.account)):
            events.append(self._swap_out(sequence, PreemptionReason.LIMIT))
        del self.paused[request.request_id]
        self._books.served[sequence.request_class].enter(request.account)
        if sequence.slot >= 0:
            sequence.to(State.RUNNING)
            self._books.running[sequence.request_class][request.request_id] = sequence
            tenants[request.account].n_running += 1
            self._resumed(sequence, events)
            return events
        sequence.to(State.SWAPPED if sequence.entry >= 0 else State.WAITING)
        if sequence.started and sequence.request_class is RequestClass.INTERACTIVE:
            sequence.order_key = order_key(0.0, sequence.arrived_ns, self._books.policy.ageing)
        self._queue(sequence).push(sequence)
        return events

    def _swap_out(self, sequence: Sequence, why: PreemptionReason) -> Preempted:
        """Take its slot. Its cells go to the host store, or are dropped."""
        n_before = sequence.n_computed
        kind = self._placement.swap_out(sequence)
        self.totals.preemptions[kind] += 1
        self.totals.recomputed_tokens += n_before - sequence.n_computed
        return Preempted(sequence.request.request_id, kind, why)

    def _resumed(self, sequence: Sequence, events: list[Event]) -> None:
        self.totals.resumes += 1
        away_us = max(0, self.now_ns - sequence.away_ns) // 1000
        events.append(Resumed(sequence.request.request_id, away_us, sequence.n_recomputed))

    def _downgrade(self, sequence: Sequence, why: DowngradeReason) -> Downgraded:
        """It goes on as background work. It keeps its slot for now; background's rules decide about it from here on."""
        request, books = sequence.request, self._books
        old, new = sequence.request_class, RequestClass.BACKGROUND
        queued = sequence.is_queued
        if queued:
            self._queue(sequence).remove(sequence)
        if sequence.slot >= 0:
            books.pools[sequence.pool].change_class(sequence, new)
        if sequence.state is State.RUNNING:
            del books.running[old][request.request_id]
            books.running[new][request.request_id] = sequence
        if sequence.state is not State.PAUSED:
            books.served[old].leave(request.account)
            books.served[new].enter(request.account)
        sequence.request_class = new
        if queued:
            self._queue(sequence).push(sequence)
        self.totals.downgrades += 1
        return Downgraded(request.request_id, why)
