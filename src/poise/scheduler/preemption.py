"""Who loses its slot, and to whom (rules R6 and R7).

The ladder, from the mildest rung: pause in place (the cells stay, nothing is computed) is what an operator asks for; swap out
when the slot is needed, to the host store; drop and compute again where the store has no room or carrying would cost more.
`placement` chooses between the last two by cost. Here it is decided whether somebody's slot is taken at all:

    a paused sequence's        for anybody: it holds a slot and computes nothing
    background's               for interactive work that finds no free slot
    another tenant's           for interactive work of a tenant that has no slot, from the tenant that has most (two or more)
    background's, in turns     for background work that waits, once the holder has had its slot for `turn_us`

Victims: lowest class, then most-served tenant, then least lost work. What keeps it from thrashing (invariant 8): a sequence
computes at least one chunk between two preemptions; it is preempted at most `preemptions_max` times, then it is protected;
and nobody is preempted for a prompt while another prompt of that class still waits for compute in a slot it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from poise.scheduler.fairness import ServedCost
from poise.scheduler.kv import KvPool
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import Sequence, State


class Preemption:
    """Chooses victims. Modifies nothing."""

    def __init__(self, policy: SchedulerPolicy, served: Mapping[RequestClass, ServedCost]) -> None:
        self._policy = policy
        self._served = served

    def victim(self, pool: KvPool, arrival: Sequence, now_ns: int) -> Sequence | None:
        """Whose slot the arrival, which cannot have a free one, may take now; None: it waits."""
        if self._waits_for_compute(pool, arrival):
            return None
        # Where free slots are left it is the class that has as many as it may: then only its own can make room.
        full = pool.n_free == 0
        holders = [s for s in pool.holders.values() if full or s.request_class is arrival.request_class]
        paused = self._worst(s for s in holders if s.state is State.PAUSED)
        if paused is not None:
            return paused
        background = [s for s in holders if s.request_class is RequestClass.BACKGROUND]
        if arrival.request_class is RequestClass.BACKGROUND:
            return self._worst(self._turns(arrival, background, now_ns))
        return self._worst(s for s in background if self._may_lose(s)) or self._worst(self._hogs(arrival, pool))

    def _waits_for_compute(self, pool: KvPool, arrival: Sequence) -> bool:
        """Slots are not what is short: a prompt that is first already has one and is not done with it."""
        rank = self._served[arrival.request_class].rank
        own = rank(arrival.request.tenant)
        return any(
            s.request_class is arrival.request_class
            and s.state is State.RUNNING
            and not s.is_decoding
            and rank(s.request.tenant) <= own
            for s in pool.holders.values()
        )

    def _may_lose(self, sequence: Sequence) -> bool:
        """Invariant 8."""
        return sequence.n_chunks > 0 and sequence.n_preempted < self._policy.preemptions_max

    def _turns(self, arrival: Sequence, holders: list[Sequence], now_ns: int) -> Iterator[Sequence]:
        """Background sequences whose turn is over, of tenants that are not served less than the arrival's."""
        rank = self._served[RequestClass.BACKGROUND].rank
        own = rank(arrival.request.tenant)
        for sequence in holders:
            over = now_ns - sequence.placed_ns >= self._policy.turn_us * 1000
            if over and self._may_lose(sequence) and rank(sequence.request.tenant) >= own:
                yield sequence

    def _hogs(self, arrival: Sequence, pool: KvPool) -> Iterator[Sequence]:
        """Sequences of the interactive tenants that hold most slots, where the arrival's tenant holds none."""
        rank = self._served[RequestClass.INTERACTIVE].rank
        if pool.held_by_tenant(arrival.request.tenant):
            return
        own = rank(arrival.request.tenant)
        most = max((pool.held_by_tenant(s.request.tenant) for s in pool.holders.values()), default=0)
        for sequence in pool.holders.values():
            tenant = sequence.request.tenant
            if most >= 2 and pool.held_by_tenant(tenant) == most and self._may_lose(sequence) and rank(tenant) > own:
                yield sequence

    def _worst(self, candidates: Iterator[Sequence]) -> Sequence | None:
        """The victim among them: lowest class, then most-served tenant, then least lost work."""
        return max(candidates, key=self._badness, default=None)

    def _badness(self, sequence: Sequence) -> tuple[bool, int, int, int]:
        lowest = sequence.request_class is RequestClass.BACKGROUND
        served = self._served[sequence.request_class].rank(sequence.request.tenant)
        return (lowest, served, -sequence.n_computed, -sequence.request.request_id)
