"""Queued sequences of one class and pool: a heap for each tenant, and the order between tenants by served cost.

Queued are new requests, and preempted ones that are to go on. The order inside a tenant is shortest predicted prompt first,
with ageing: each second of waiting takes `ageing` seconds off the predicted cost. As all queued sequences age at one rate,
"cost - ageing * waited" orders them as "cost + ageing * arrival" does, which never changes: a plain heap suffices, and nothing
is re-sorted as time passes. (Ageing bounds the wait that shorter prompts can inflict, like the response-ratio policies in the
literature.)

Heavy prompts, of which more than `heavy_tokens` must be computed (rule R5), stand apart, so that nobody else waits behind one for
which there is no place. That changes with the prefixes that are kept: each prompt that is long enough watches the one block that
decides, as whoever has a block has all before it.

Whoever comes first and finds that a running request is computing its beginning stands aside until that is done (`memory/live`);
nobody waits behind it."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.request import BLOCK_TOKENS
from poise.scheduler.sequence import Sequence


def order_key(predicted_us: float, arrived_ns: int, ageing: float) -> float:
    """Lower goes first. Constant over time; see the module's text."""
    return predicted_us + ageing * (arrived_ns / 1000)


class Reuse(Protocol):
    """What a queue asks of cells that may be used again (`memory/reuse`)."""

    @property
    def least(self) -> int:
        """A prefix of fewer cells is computed again."""
        ...

    def kept(self, sequence: Sequence) -> int: ...

    def cached(self, sequence: Sequence) -> int:
        """Cells that a queued sequence would not have to compute now; `kept`: without those that a running request has."""
        ...

    def leader(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """Who is computing what a queued sequence would have to, and the cells that it can have of that; None: nobody."""
        ...

    def leads(self, leader: Sequence, follower: Sequence, n_cells: int) -> bool:
        """Whether it still computes them, and goes on."""
        ...


class WaitingQueue:
    """Queued sequences of one class and pool. Removal is lazy: an entry that is not its sequence's last push is skipped.

    `order`: the place of one that has had no slot, by what it would cost now."""

    def __init__(self, served: ServedCost, heavy_tokens: int, reuse: Reuse, order: Callable[[Sequence], float]) -> None:
        self._served = served
        self._order = order
        self._heavy_tokens = heavy_tokens
        self._reuse = reuse
        self._heaps: dict[bool, dict[str, list[tuple[float, int, int, Sequence]]]] = {False: {}, True: {}}
        """Whether they are heavy, and their account."""
        self._watched: dict[int | str, dict[int, Sequence]] = {}
        """By block or template, for whom it decides whether they are heavy."""
        self._followers: dict[tuple[int, int], tuple[Sequence, dict[int, Sequence]]] = {}
        """By who computes their beginning and how much of it they want: who that is, and those that stand aside for it."""
        self._followed: dict[int, tuple[int, int]] = {}
        """By who stands aside, where in the above."""
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
        aside = {s.request.account: None for _, followers in self._followers.values() for s in followers.values()}
        return {**self._heaps[False], **self._heaps[True], **aside}.keys()

    def n_new_of(self, account: str) -> int:
        """How many of those that never had a slot are the account's."""
        return self._new_by_account.get(account, 0)

    def push(self, sequence: Sequence) -> None:
        assert sequence.is_queued, f"request {sequence.request.request_id} is {sequence.state}"
        request = sequence.request
        self._enter(sequence)
        for key in self._deciding(sequence):
            self._watched.setdefault(key, {})[request.request_id] = sequence
        # For the first time: after that, it is one like any other here.
        self._served.queue(request.account, returns=request.readmitted and sequence.n_pushes == 1)
        self._count(sequence, +1)

    def remove(self, sequence: Sequence) -> None:
        """Called before the sequence's state or tokens change. Its heap entry is dropped when it comes up."""
        assert sequence.is_queued, f"request {sequence.request.request_id} is {sequence.state}"
        self._served.unqueue(sequence.request.account)
        self._count(sequence, -1)
        for key in self._deciding(sequence):
            del self._watched[key][sequence.request.request_id]
            if not self._watched[key]:
                del self._watched[key]
        if not self._forget_follower(sequence):
            sequence.n_pushes += 1
            self._drop_stale(sequence.heavy, sequence.request.account)

    def is_heavy(self, sequence: Sequence) -> bool:
        """Whether so much of a queued sequence's prompt would have to be computed now."""
        n_prompt = sequence.request.n_prompt
        if n_prompt <= self._heavy_tokens or sequence.spared:
            return False
        return n_prompt - self._reuse.kept(sequence) > self._heavy_tokens

    def sort_again(self, keys: Iterable[int | str]) -> None:
        """The first or the last kept prefix with these blocks came or went, or these templates did."""
        for key in keys if self._watched else ():
            for sequence in list(self._watched.get(key, {}).values()):
                was_heavy = sequence.heavy
                if sequence.request.request_id in self._followed:
                    continue  # that is seen to when it comes back
                if was_heavy != self.is_heavy(sequence):
                    if not sequence.started:
                        sequence.order_key = self._order(sequence)
                    self._enter(sequence)
                    self._drop_stale(was_heavy, sequence.request.account)

    def first(self, may_run: Callable[[str], bool], slots: Callable[[str], float], *, heavy: bool) -> Sequence | None:
        """The next sequence of the least-served tenant that `may_run`, or None; among heavy ones or others.

        Between tenants that rank alike the one with fewer `slots` goes first: what it would be given is a slot, and the
        difference in slots is the difference in served cost a moment later. Linear in the number of tenants with queued
        sequences here, not in the sequences."""
        while (chosen := self._foremost(may_run, slots, heavy=heavy)) is not None:
            leader = self._reuse.leader(chosen)
            if leader is None:
                break
            self._stand_aside(chosen, *leader)
        return chosen

    def _foremost(self, may_run: Callable[[str], bool], slots: Callable[[str], float], *, heavy: bool) -> Sequence | None:
        best: tuple[int, float, float, int] | None = None
        chosen: Sequence | None = None
        for tenant, heap in self._heaps[heavy].items():
            key, request_id, _, sequence = heap[0]
            rank = (self._served.rank(tenant), slots(tenant), key, request_id)
            if (best is None or rank < best) and may_run(tenant):
                best, chosen = rank, sequence
        return chosen

    def bring_back(self) -> None:
        """Those queue again whose beginning is computed by now, or will not be. Called before each plan."""
        for key, (leader, followers) in list(self._followers.items()):
            if not self._reuse.leads(leader, next(iter(followers.values())), key[1]):
                for sequence in list(followers.values()):
                    self._forget_follower(sequence)
                    if not sequence.started:
                        sequence.order_key = self._order(sequence)
                    self._enter(sequence)

    def _stand_aside(self, sequence: Sequence, leader: Sequence, n_cells: int) -> None:
        request_id, key = sequence.request.request_id, (leader.request.request_id, n_cells)
        sequence.n_pushes += 1
        self._drop_stale(sequence.heavy, sequence.request.account)
        self._followers.setdefault(key, (leader, {}))[1][request_id] = sequence
        self._followed[request_id] = key

    def _forget_follower(self, sequence: Sequence) -> bool:
        """Whether it stood aside."""
        key = self._followed.pop(sequence.request.request_id, None)
        if key is None:
            return False
        del self._followers[key][1][sequence.request.request_id]
        if not self._followers[key][1]:
            del self._followers[key]
        return True

    def queued(self) -> Iterator[Sequence]:
        for heaps in self._heaps.values():
            for heap in heaps.values():
                for entry in heap:
                    if _is_live(entry):
                        yield entry[3]
        for _, followers in self._followers.values():
            yield from followers.values()

    def _enter(self, sequence: Sequence) -> None:
        """To its place among those that are as heavy as it is now; its place before is stale."""
        request = sequence.request
        sequence.n_pushes += 1
        n_heavy = request.n_prompt - self._heavy_tokens
        sequence.spared = n_heavy > 0 and self._reuse.cached(sequence) >= n_heavy > self._reuse.kept(sequence)
        sequence.heavy = self.is_heavy(sequence)
        heap = self._heaps[sequence.heavy].setdefault(request.account, [])
        heapq.heappush(heap, (sequence.order_key, request.request_id, sequence.n_pushes, sequence))
        self._n_entries += 1

    def _deciding(self, sequence: Sequence) -> Iterator[int | str]:
        """What it has to find so that it is not heavy: this block, or this template."""
        n_cells = sequence.request.n_prompt - self._heavy_tokens
        if n_cells > 0:
            last = (max(n_cells, self._reuse.least) - 1) // BLOCK_TOKENS
            yield from sequence.blocks[last : last + 1]
            if sequence.request.template:
                yield sequence.request.template

    def _drop_stale(self, heavy: bool, tenant: str) -> None:
        """At the head of a heap that something has left; anywhere, where a storm of cancels stands behind a head that stays."""
        heap = self._heaps[heavy][tenant]
        while heap and not _is_live(heap[0]):
            heapq.heappop(heap)
            self._n_entries -= 1
        if not heap:
            del self._heaps[heavy][tenant]
        if self._n_entries <= 2 * self.n_queued + 64:
            return
        self._n_entries = 0
        for lane, heaps in self._heaps.items():
            live = {owner: [e for e in entries if _is_live(e)] for owner, entries in heaps.items()}
            self._heaps[lane] = {owner: entries for owner, entries in live.items() if entries}
            for entries in self._heaps[lane].values():
                heapq.heapify(entries)
                self._n_entries += len(entries)

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
