"""Requests that hold a slot, by the beginning of what they came with: who begins alike need not compute it beside them.

A request that finds its beginning in a running one's slot starts from a copy of it. One that finds it *being computed* waits
until it is there: both would share the same compute, so neither would be earlier by itself. Only for one of the same tenant,
and for no work that is less urgent than its own. (SGLang's RadixAttention shares what has been computed; to wait for what is
being computed is our own rule.)"""

from collections.abc import Sequence as SequenceOf

from poise.scheduler.request import BLOCK_TOKENS, Request, RequestClass
from poise.scheduler.sequence import Sequence, State

FOLLOW_MIN_CELLS = 64
"""Nobody waits to be spared fewer."""


class LivePrompts:
    """Sequences with a slot, by tenant, pool and first block. Those whose cells nobody may have are left out."""

    def __init__(self) -> None:
        self._by_first: dict[tuple[str, str, int], list[Sequence]] = {}

    def add(self, sequence: Sequence) -> None:
        """It has a slot from now on."""
        request = sequence.request
        if request.blocks and not (request.pins or request.suspect or sequence.erased):
            self._by_first.setdefault((request.tenant, sequence.pool, request.blocks[0]), []).append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It gives its slot up."""
        request = sequence.request
        where = (request.tenant, sequence.pool, request.blocks[0] if request.blocks else 0)
        alike = self._by_first.get(where, [])
        if sequence in alike:
            alike.remove(sequence)
            if not alike:
                del self._by_first[where]

    def longest(self, request: Request, pool: str, blocks: SequenceOf[int]) -> tuple[Sequence, int] | None:
        """Who has computed most of these blocks, and how many cells that are; None: nobody has any."""
        best: tuple[Sequence, int] | None = None
        for sequence in self._alike(request, pool, blocks):
            n_computed = sequence.n_computed // BLOCK_TOKENS * BLOCK_TOKENS
            if n_computed > (best[1] if best else 0):
                n_cells = min(n_computed, shared_cells(sequence.request.blocks, blocks))
                if n_cells > (best[1] if best else 0):
                    best = sequence, n_cells
        return best

    def leader(self, sequence: Sequence, n_known: int) -> tuple[Sequence, int] | None:
        """Who is computing what a queued sequence would have to, and how many cells it can have of that; None: nobody.

        `n_known`: cells that it would find now."""
        best: tuple[Sequence, int] | None = None
        most = sequence.n_tokens - 1
        for other in self._alike(sequence.request, sequence.pool, sequence.blocks):
            n_cells = min(shared_cells(other.request.blocks, sequence.blocks), most)
            if (
                n_cells - n_known >= FOLLOW_MIN_CELLS
                and n_cells > (best[1] if best else 0)
                and self.leads(other, sequence, n_cells)
            ):
                best = other, n_cells
        return best

    def coming(self, request: Request, pool: str) -> int:
        """Cells of a new request's prompt that are computed there, or will be."""
        alike = self._alike(request, pool, request.blocks)
        return max((shared_cells(s.request.blocks, request.blocks) for s in alike), default=0)

    def leads(self, leader: Sequence, follower: Sequence, n_cells: int) -> bool:
        """Whether the one still computes what the other waits for, and goes on with it."""
        urgent = leader.request_class is RequestClass.INTERACTIVE or follower.request_class is RequestClass.BACKGROUND
        return urgent and leader.state is State.RUNNING and not leader.erased and leader.n_computed < n_cells

    def _alike(self, request: Request, pool: str, blocks: SequenceOf[int]) -> SequenceOf[Sequence]:
        if not blocks or request.scores:
            return ()
        return [s for s in self._by_first.get((request.tenant, pool, blocks[0]), ()) if not s.erased]


def shared_cells(one: SequenceOf[int], other: SequenceOf[int]) -> int:
    """Cells of the blocks that two beginnings share: whoever has a block in common has all before it."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low * BLOCK_TOKENS
