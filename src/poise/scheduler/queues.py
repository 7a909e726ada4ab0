"""Queued sequences of one class and pool: a heap for each tenant, and the order between tenants by served cost.

Queued are new requests, and preempted ones that are to go on. The order inside a tenant is shortest predicted prompt first,
with ageing: each second of waiting takes `ageing` seconds off the predicted cost. As all queued sequences age at one rate,
"cost - ageing * waited" orders them as "cost + ageing * arrival" does, which never changes: a plain heap suffices, and nothing
is re-sorted as time passes. (Ageing bounds the wait that shorter prompts can inflict, like the response-ratio policies in the
literature.)"""

import heapq
from collections.abc import Callable, Iterable, Iterator

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.sequence import Sequence


def order_key(predicted_us: float, arrived_ns: int, ageing: float) -> float:
    """Lower goes first. Constant over time; see the module's text."""
    return predicted_us + ageing * (arrived_ns / 1000)


class WaitingQueue:
    """Queued sequences of one class and pool. Removal is lazy: an entry that is not its sequence's last push is skipped."""

    def __init__(self, served: ServedCost) -> None:
        self._served = served
        self._heaps: dict[str, list[tuple[float, int, int, Sequence]]] = {}
        self._n_entries = 0
        self.n_queued = 0
        self.n_new = 0
        """Those that never had a slot: what the bound of the queue counts."""
        self._new_by_account: dict[str, int] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0

    @property
    def tenants(self) -> Iterable[str]:
        """Who has queued sequences here."""
        return self._heaps.keys()

    def n_new_of(self, account: str) -> int:
        """How many of those that never had a slot are the account's."""
        return self._new_by_account.get(account, 0)

    def push(self, sequence: Sequence) -> None:
        assert sequence.is_queued, f"request {sequence.request.request_id} is {sequence.state}"
        request = sequence.request
        sequence.n_pushes += 1
        heap = self._heaps.setdefault(request.account, [])
        heapq.heappush(heap, (sequence.order_key, request.request_id, sequence.n_pushes, sequence))
        self._n_entries += 1
        # For the first time: after that, it is one like any other here.
        self._served.queue(request.account, returns=request.readmitted and sequence.n_pushes == 1)
        self._count(sequence, +1)

    def remove(self, sequence: Sequence) -> None:
        """Called before the sequence's state or tokens change. Its heap entry is dropped when it comes up."""
        assert sequence.is_queued, f"request {sequence.request.request_id} is {sequence.state}"
        self._served.unqueue(sequence.request.account)
        self._count(sequence, -1)
        sequence.n_pushes += 1
        self._drop_stale_head(sequence.request.account)
        if self._n_entries > 2 * self.n_queued + 64:  # a storm of cancels behind a head that stays
            self._drop_all_stale()

    def first(self, may_run: Callable[[str], bool], slots: Callable[[str], float]) -> Sequence | None:
        """The next sequence of the least-served tenant that `may_run`, or None. Modifies nothing.

        Between tenants that rank alike the one with fewer `slots` goes first: what it would be given is a slot, and the
        difference in slots is the difference in served cost a moment later. Linear in the number of tenants with queued
        sequences here, not in the sequences."""
        best: tuple[int, float, float, int] | None = None
        chosen: Sequence | None = None
        for tenant, heap in self._heaps.items():
            key, request_id, _, sequence = heap[0]
            rank = (self._served.rank(tenant), slots(tenant), key, request_id)
            if (best is None or rank < best) and may_run(tenant):
                best, chosen = rank, sequence
        return chosen

    def queued(self) -> Iterator[Sequence]:
        for heap in self._heaps.values():
            for entry in heap:
                if _is_live(entry):
                    yield entry[3]

    def _drop_stale_head(self, tenant: str) -> None:
        heap = self._heaps[tenant]
        while heap and not _is_live(heap[0]):
            heapq.heappop(heap)
            self._n_entries -= 1
        if not heap:
            del self._heaps[tenant]

    def _drop_all_stale(self) -> None:
        live = {tenant: [e for e in heap if _is_live(e)] for tenant, heap in self._heaps.items()}
        self._heaps = {tenant: heap for tenant, heap in live.items() if heap}
        self._n_entries = 0
        for heap in self._heaps.values():
            heapq.heapify(heap)
            self._n_entries += len(heap)

    def _count(self, sequence: Sequence, change: int) -> None:
        self.n_queued += change
        request = sequence.request
        if not sequence.started:
            self.n_new += change
            n_own = self._new_by_account.get(request.account, 0) + change
            if n_own:
                self._new_by_account[request.account] = n_own
            else:
                del self._new_by_account[request.account]
        self.prompt_tokens += change * request.n_known
        self.output_tokens += change * (sequence.n_likely - request.n_output)


def _is_live(entry: tuple[float, int, int, Sequence]) -> bool:
    """Whether the entry is its sequence's present place: every push and every removal numbers it anew."""
    return entry[2] == entry[3].n_pushes
