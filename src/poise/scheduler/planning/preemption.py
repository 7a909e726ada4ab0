"""Who loses its slot, and to whom (rules R6 and R7).

The ladder, from the mildest rung: pause in place (the cells stay, nothing is computed) is what an operator asks for; swap out
when the slot is needed, to the host store; drop and compute again where the store has no room or carrying would cost more.
`placement` chooses between the last two by cost. Here it is decided whether somebody's slot is taken at all:

    a paused sequence's        for anybody: it holds a slot and computes nothing (an operator paused it, or its reader is behind)
    background's               for interactive work that finds no free slot
    a heavy prompt's           for a heavy one of its class that finds no place among those that are computed, as for a slot below
    another tenant's           for interactive work of a tenant that was served less, by so much that it does not flutter: first
                               for its slot, and much later, where slots are free, for the compute that its stream takes
    background's, in turns     for background work that waits, once the holder has had its slot for `turn_us`

Victims: lowest class, then most-served tenant, then least lost work. What keeps it from thrashing (invariant 8): a sequence
computes at least one chunk between two preemptions; it is preempted at most `preemptions_max` times, then it is protected;
and nobody is preempted for a prompt while another prompt of that class still waits for compute in a slot it has."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf

from poise.scheduler import admission
from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.memory.kv import KvPool
from poise.scheduler.planning.books import Books
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.request import PreemptionReason, RequestClass
from poise.scheduler.sequence import Sequence, State

COMPUTE_GRAINS = 5
"""How many grains a tenant must be behind before another's stream is stopped for the compute it takes, not for its slot."""


Victim = tuple[Sequence, PreemptionReason]
"""Who loses its slot, and why."""


class Preemption:
    """Chooses victims. Modifies nothing."""

    def __init__(self, policy: SchedulerPolicy, served: Mapping[RequestClass, ServedCost]) -> None:
        self._policy = policy
        self._served = served

    def claims(self, books: Books, now_ns: int) -> Iterator[tuple[Sequence, PreemptionReason, Sequence]]:
        """Where the first of a queue finds no slot, no place among the heavy, or no compute: who loses its slot, why, to whom.

        One of a pool; each is to be carried out before the next is asked for."""
        for name, pool in books.pools.items():
            for request_class, limits in books.limits.items():
                slots_max = admission.slots_max(self._policy.pools, name, limits)
                if not (books.queues[request_class, name].n_queued and books.runs(request_class)):
                    continue
                if not books.has_rows(request_class) and pool.may_take(request_class, slots_max):
                    continue
                claim = self._claim(books, request_class, pool, slots_max, now_ns)
                if claim is not None:
                    yield claim
                    break

    def _claim(
        self, books: Books, request_class: RequestClass, pool: KvPool, slots_max: int, now_ns: int
    ) -> tuple[Sequence, PreemptionReason, Sequence] | None:
        """For the class's first that is not heavy, else for its first that is."""
        for heavy in (False, True):
            arrival = books.first_waiting(request_class, pool.name, heavy=heavy)
            if arrival is not None:
                rivals = books.rivals(request_class) if heavy else []
                found = self._victim(pool, arrival, now_ns, slots_max, rivals)
                if found is not None:
                    return *found, arrival
        return None

    def _victim(
        self, pool: KvPool, arrival: Sequence, now_ns: int, slots_max: int, rivals: SequenceOf[Sequence]
    ) -> Victim | None:
        """Whose slot is taken now so that the arrival comes on; None: nobody's. `slots_max`: slots that its class may have;
        `rivals`: one of these must give way as well, if there are any."""
        has_slot = not rivals and pool.may_take(arrival.request_class, slots_max)
        if has_slot or self._waits_for_compute(pool, arrival):
            return self._worst(self._spenders(arrival, pool, now_ns), PreemptionReason.COMPUTE)
        held = pool.held_by(arrival.request_class)
        # Where its class has as many slots as it may, only its own can make room.
        holders = [s for s in pool.holders.values() if held < slots_max or s.request_class is arrival.request_class]
        if rivals:
            holders = [s for s in rivals if s.pool == pool.name]
        idle = self._worst((s for s in holders if s.state is State.PAUSED), PreemptionReason.IDLE)
        if idle is not None or held > slots_max:  # a limit that was lowered stops nobody: one slot would not be enough
            return idle
        background = [s for s in holders if s.request_class is RequestClass.BACKGROUND]
        if arrival.request_class is RequestClass.BACKGROUND:
            return self._worst(self._turns(arrival, background, now_ns), PreemptionReason.TURN)
        may_lose = (s for s in background if self._may_lose(s))
        hogs = self._hogs(arrival, pool, holders)
        return self._worst(may_lose, PreemptionReason.CLASS) or self._worst(hogs, PreemptionReason.TENANT)

    def _waits_for_compute(self, pool: KvPool, arrival: Sequence) -> bool:
        """Slots are not what is short: a prompt that is first already has one and is not done with it."""
        rank = self._served[arrival.request_class].rank
        own = rank(arrival.request.account)
        return any(
            s.request_class is arrival.request_class
            and s.state is State.RUNNING
            and not s.is_decoding
            and rank(s.request.account) <= own
            for s in pool.holders.values()
        )

    def _may_lose(self, sequence: Sequence) -> bool:
        """Invariant 8."""
        return sequence.n_chunks > 0 and sequence.n_preempted < self._policy.preemptions_max

    def _turns(self, arrival: Sequence, holders: list[Sequence], now_ns: int) -> Iterator[Sequence]:
        """Background sequences whose turn is over, of tenants that are not served less than the arrival's."""
        rank = self._served[RequestClass.BACKGROUND].rank
        own = rank(arrival.request.account)
        for sequence in holders:
            over = now_ns - sequence.placed_ns >= self._policy.turn_us * 1000
            if over and self._may_lose(sequence) and rank(sequence.request.account) >= own:
                yield sequence

    def _hogs(self, arrival: Sequence, pool: KvPool, holders: Iterable[Sequence]) -> Iterator[Sequence]:
        """Interactive sequences of tenants that have been served more, and enough more. A tenant keeps its last stream.

        Each step gives every one of them a token (rule R1), so served cost follows slots. A tenant without a slot gets one
        as soon as it ranks before a holder of several."""
        rank = self._served[RequestClass.INTERACTIVE].rank
        own = arrival.request.account
        newcomer = not pool.held_by_tenant(own)
        for sequence in self._others(arrival, holders):
            tenant = sequence.request.account
            several = pool.held_by_tenant(tenant) > 1
            ranks_before = newcomer and several and rank(own) < rank(tenant)
            if (several or not sequence.n_output) and (ranks_before or self._is_behind(arrival, sequence, pool, 1)):
                yield sequence

    def _spenders(self, arrival: Sequence, pool: KvPool, now_ns: int) -> Iterator[Sequence]:
        """Streams of tenants that have been served far more, where not slots but compute is short: the arrival finds a slot, or
        its tenant's prompt is in one. Without an end to it, what streams take beyond their share would add up for ever."""
        for sequence in self._others(arrival, pool.holders.values()):
            if sequence.request_class is RequestClass.INTERACTIVE:
                may_stop = pool.held_by_tenant(sequence.request.account) > 1
            else:
                may_stop = now_ns - sequence.placed_ns >= self._policy.turn_us * 1000
            if may_stop and sequence.is_decoding and self._is_behind(arrival, sequence, pool, COMPUTE_GRAINS):
                yield sequence

    def _others(self, arrival: Sequence, holders: Iterable[Sequence]) -> Iterator[Sequence]:
        """What of other tenants of the arrival's class runs in these slots and may lose its own."""
        for sequence in holders:
            other = sequence.request.account != arrival.request.account
            same_class = sequence.request_class is arrival.request_class
            if other and same_class and sequence.state is State.RUNNING and self._may_lose(sequence):
                yield sequence

    def _is_behind(self, arrival: Sequence, sequence: Sequence, pool: KvPool, grains: int) -> bool:
        """Whether the arrival's tenant is so many grains behind the sequence's, and one more for each slot past its fair share.

        The fair share is that of both tenants' slots and the free ones, which count as the arrival's. So slots follow served
        cost, and small differences move none."""
        served = self._served[arrival.request_class]
        own, tenant = arrival.request.account, sequence.request.account
        weight, held = self._policy.tenant(own).weight, pool.held_by_tenant(own) + pool.n_free
        fair = (held + pool.held_by_tenant(tenant)) * weight / (weight + self._policy.tenant(tenant).weight)
        return served[tenant] - served[own] >= (grains + max(0.0, held + 1 - fair)) * self._policy.grain_us

    def _worst(self, candidates: Iterable[Sequence], why: PreemptionReason) -> Victim | None:
        """The victim among them: lowest class, then most-served tenant, then least lost work."""
        worst = max(candidates, key=self._badness, default=None)
        return None if worst is None else (worst, why)

    def _badness(self, sequence: Sequence) -> tuple[bool, int, int, int]:
        lowest = sequence.request_class is RequestClass.BACKGROUND
        served = self._served[sequence.request_class].rank(sequence.request.account)
        return (lowest, served, -sequence.n_computed, -sequence.request.request_id)
