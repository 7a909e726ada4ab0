"""Waiting requests of one class and pool: a heap for each tenant, and the order between tenants by served cost.

The order inside a tenant is shortest predicted prompt first, with ageing: each second of waiting takes `ageing` seconds off
the predicted cost. As all waiting requests age at one rate, "cost - ageing * waited" orders them as
"cost + ageing * arrival" does, which never changes: a plain heap suffices, and nothing is re-sorted as time passes.
(Ageing bounds the wait that shorter prompts can inflict, like the response-ratio policies in the literature.)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from poise.scheduler.fairness import ServedCost
from poise.scheduler.sequence import Sequence, State


def order_key(predicted_us: float, arrived_ns: int, ageing: float) -> float:
    """Lower goes first. Constant over time; see the module's text."""
    return predicted_us + ageing * (arrived_ns / 1000)


class WaitingQueue:
    """Waiting sequences of one class and pool. Removal is lazy: an entry whose sequence no longer waits is skipped."""

    def __init__(self, served: ServedCost) -> None:
        self._served = served
        self._heaps: dict[str, list[tuple[float, int, Sequence]]] = {}
        self._n_entries = 0
        self.n_waiting = 0
        self.prompt_tokens = 0
        self.output_tokens = 0

    def push(self, sequence: Sequence) -> None:
        request = sequence.request
        heap = self._heaps.setdefault(request.tenant, [])
        heapq.heappush(heap, (sequence.order_key, request.request_id, sequence))
        self._n_entries += 1
        self._count(sequence, +1)

    def remove(self, sequence: Sequence) -> None:
        """The sequence has stopped waiting (its state says so); its heap entry is dropped when it comes up."""
        assert sequence.state is not State.WAITING
        self._count(sequence, -1)
        self._drop_stale_head(sequence.request.tenant)
        if self._n_entries > 2 * self.n_waiting + 64:  # a storm of cancels behind a head that stays
            self._drop_all_stale()

    def first(self, may_run: Callable[[str], bool]) -> Sequence | None:
        """The next sequence of the least-served tenant that `may_run`, or None. Modifies nothing.

        Linear in the number of tenants with waiting requests here, not in the requests.
        """
        best: tuple[int, float, int] | None = None
        chosen: Sequence | None = None
        for tenant, heap in self._heaps.items():
            key, request_id, sequence = heap[0]
            rank = (self._served.rank(tenant), key, request_id)
            if (best is None or rank < best) and may_run(tenant):
                best, chosen = rank, sequence
        return chosen

    def waiting(self) -> Iterator[Sequence]:
        for heap in self._heaps.values():
            for _, _, sequence in heap:
                if sequence.state is State.WAITING:
                    yield sequence

    def check(self) -> None:
        assert sum(1 for _ in self.waiting()) == self.n_waiting, "waiting requests miscounted"
        assert sum(s.request.n_prompt for s in self.waiting()) == self.prompt_tokens, "waiting tokens miscounted"
        assert sum(len(heap) for heap in self._heaps.values()) == self._n_entries, "entries miscounted"
        for tenant, heap in self._heaps.items():
            assert heap, f"tenant {tenant} has an empty heap"
            assert heap[0][2].state is State.WAITING, f"tenant {tenant} has a stale head"

    def _drop_stale_head(self, tenant: str) -> None:
        heap = self._heaps[tenant]
        while heap and heap[0][2].state is not State.WAITING:
            heapq.heappop(heap)
            self._n_entries -= 1
        if not heap:
            del self._heaps[tenant]

    def _drop_all_stale(self) -> None:
        live = {t: [e for e in heap if e[2].state is State.WAITING] for t, heap in self._heaps.items()}
        self._heaps = {tenant: heap for tenant, heap in live.items() if heap}
        self._n_entries = 0
        for heap in self._heaps.values():
            heapq.heapify(heap)
            self._n_entries += len(heap)

    def _count(self, sequence: Sequence, change: int) -> None:
        self.n_waiting += change
        self.prompt_tokens += change * sequence.request.n_prompt
        self.output_tokens += change * sequence.request.max_output
