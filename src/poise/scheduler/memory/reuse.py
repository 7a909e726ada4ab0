"""Cells that may be used again: kept prefixes, templates, what running requests have computed. Where they are, and for whom."""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf

from poise.scheduler.memory.live import LivePrompts
from poise.scheduler.memory.prefix import Prefix, PrefixIndex
from poise.scheduler.memory.store import Entry
from poise.scheduler.policy import StorePolicy
from poise.scheduler.request import Request
from poise.scheduler.sequence import Sequence

Source = Prefix | Entry | Sequence
"""Where such cells are; of a sequence, in its slot."""
Found = tuple[Source, int]
"""And how many of them."""


class Reusable:
    """All of them. `turned` is told of a pool's blocks or templates that are kept from now on, or not any more."""

    def __init__(self, policy: StorePolicy, turned: Callable[[str, Iterable[int | str]], None]) -> None:
        self._policy = policy
        self.index = PrefixIndex(turned)
        self.live = LivePrompts()
        self.templates: dict[tuple[str, str], Entry] = {}
        """(pool, template name) to its entry, once it has been computed."""

    @property
    def least(self) -> int:
        """A prefix of fewer cells is computed again."""
        return self._policy.prefix_min_cells

    def cached(self, sequence: Sequence) -> int:
        """Cells that a queued sequence would not have to compute if it got a slot now."""
        if sequence.n_computed:
            return sequence.n_computed
        found = self.find(sequence.request, sequence.pool, sequence.blocks, sequence.n_tokens)
        return found[1] if found else 0

    def kept(self, sequence: Sequence) -> int:
        """Those of them that do not depend on a running request."""
        if sequence.n_computed:
            return sequence.n_computed
        found = self._find_kept(sequence.request, sequence.pool, sequence.blocks, sequence.n_tokens)
        return found[1] if found else 0

    def cached_prompt(self, request: Request, pool: str) -> int:
        """Tokens of a new request's prompt that it will not have to compute in that pool."""
        found = self._find_kept(request, pool, request.blocks, request.n_prompt)
        coming = self.live.coming(request, pool) if self._policy.prefix_reuse else 0
        return max(found[1] if found else 0, min(coming, request.n_prompt - 1))

    def leader(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """Who is computing what a queued sequence would have to, and the cells that it can have of that; None: nobody."""
        return self.live.leader(sequence, self.cached(sequence)) if self._policy.prefix_reuse else None

    def leads(self, leader: Sequence, follower: Sequence, n_cells: int) -> bool:
        """Whether it still computes them, and goes on."""
        return self.live.leads(leader, follower, n_cells)

    def find(self, request: Request, pool: str, blocks: SequenceOf[int], n_tokens: int) -> Found | None:
        """Where the longest known beginning of `n_tokens` tokens is, and its cells. The last token is always computed."""
        found = self._find_kept(request, pool, blocks, n_tokens)
        shared = self.live.longest(request, pool, blocks) if self._policy.prefix_reuse else None
        if shared is None:
            return found
        n_cells = min(shared[1], n_tokens - 1)
        gains = n_cells > (found[1] if found else 0) and n_cells >= self.least
        return (shared[0], n_cells) if gains else found

    def _find_kept(self, request: Request, pool: str, blocks: SequenceOf[int], n_tokens: int) -> Found | None:
        if request.scores:
            return None
        most = n_tokens - 1
        found: Found | None = None
        if self._policy.prefix_reuse:
            shared = self.index.longest(request.tenant, pool, blocks)
            if shared is not None and min(shared[1], most) >= self.least:
                found = shared[0], min(shared[1], most)
        template = self.templates.get((pool, request.template)) if request.template else None
        if template is not None:
            n_cells = min(request.template_cells, template.n_cells, most)
            if n_cells > (found[1] if found else 0):
                found = template, n_cells
        return found
