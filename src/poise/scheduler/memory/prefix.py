"""Which computed cells can be used again: an index of kept prefixes by the keys of their blocks.

A prefix is what a finished sequence left behind, warm in its slot or as an entry of the host store. The key of a block stands
for every token up to the block's end, so two sequences share exactly the blocks whose keys are equal, and the longest
shared prefix is found by bisection. Every tenant has an index of its own in every pool (invariant 12): what belongs to
another is not looked at, whatever its keys are. (Hash-chained blocks are vLLM's automatic prefix caching; the index for each
tenant is our own rule.)"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from poise.scheduler.memory.retention import Use
from poise.scheduler.request import BLOCK_TOKENS


@dataclass(slots=True, eq=False)
class Prefix:
    """`n_cells` cells of a finished sequence. Either `slot` or `entry` says where they are; the other is -1."""

    tenant: str
    pool: str
    blocks: tuple[int, ...]
    n_cells: int
    slot: int = -1
    entry: int = -1
    use: Use = field(default_factory=Use)
    copy: int = -1
    """The entry that it was written through to; -1: it was not."""

    def shares(self, blocks: Sequence[int], n_cells: int) -> bool:
        """Whether its first `n_cells` cells are those of a sequence with these blocks."""
        n_blocks = -(-n_cells // BLOCK_TOKENS)
        held = self.blocks[n_blocks - 1 : n_blocks]
        return self.n_cells >= n_cells > 0 and len(held) > 0 and held == tuple(blocks[n_blocks - 1 : n_blocks])


class PrefixIndex:
    """Kept prefixes by tenant and pool. `turned` is told of blocks of a pool that nobody had before, or nobody has any more."""

    def __init__(self, turned: Callable[[str, Iterable[int]], None]) -> None:
        self._turned = turned
        self._by_key: dict[tuple[str, str], dict[int, list[Prefix]]] = {}
        self._by_entry: dict[int, Prefix] = {}
        self._kept: dict[str, list[Prefix]] = {}
        """By tenant, everything that is kept."""

    def longest(self, tenant: str, pool: str, blocks: Sequence[int]) -> tuple[Prefix, int] | None:
        """The prefix that shares most with `blocks`, and the cells they share; None where none shares a block."""
        keys = self._by_key.get((tenant, pool))
        if not keys or not blocks or blocks[0] not in keys:
            return None
        low, high = 1, len(blocks)  # blocks[low - 1] is known, and whoever has a block has all before it
        while low < high:
            middle = (low + high + 1) // 2
            if blocks[middle - 1] in keys:
                low = middle
            else:
                high = middle - 1
        holders = keys[blocks[low - 1]]
        # The shortest of those is carried with the least effort, and what is in a slot perhaps with none.
        return min(holders, key=lambda prefix: (prefix.n_cells, prefix.slot < 0)), low * BLOCK_TOKENS

    def covers(self, prefix: Prefix) -> bool:
        """Whether another kept prefix has all blocks of this one."""
        keys = self._by_key.get((prefix.tenant, prefix.pool), {})
        return any(other is not prefix for other in keys.get(prefix.blocks[-1], ()))

    def is_stored(self, prefix: Prefix) -> bool:
        """Whether an entry of the store has all blocks of this one."""
        keys = self._by_key.get((prefix.tenant, prefix.pool), {})
        return any(other.entry >= 0 for other in keys.get(prefix.blocks[-1], ()))

    def nested(self, prefix: Prefix) -> list[Prefix]:
        """Stored prefixes that this one has all blocks of: not needed beside it."""
        keys = self._by_key.get((prefix.tenant, prefix.pool), {})
        found: dict[int, Prefix] = {}
        for key in prefix.blocks:
            for other in keys.get(key, ()):
                if other is not prefix and other.entry >= 0 and other.blocks[-1] == key:
                    found[other.entry] = other
        return list(found.values())

    def add(self, prefix: Prefix) -> None:
        assert prefix.blocks, "a prefix without a whole block cannot be found again"
        self._kept.setdefault(prefix.tenant, []).append(prefix)
        keys = self._by_key.setdefault((prefix.tenant, prefix.pool), {})
        new = [key for key in prefix.blocks if key not in keys]
        for key in prefix.blocks:
            keys.setdefault(key, []).append(prefix)
        if prefix.entry >= 0:
            self._by_entry[prefix.entry] = prefix
        self._turned(prefix.pool, new)

    def remove(self, prefix: Prefix) -> None:
        self._kept[prefix.tenant].remove(prefix)
        if not self._kept[prefix.tenant]:
            del self._kept[prefix.tenant]
        keys = self._by_key[prefix.tenant, prefix.pool]
        for key in prefix.blocks:
            holders = keys[key]
            holders.remove(prefix)
            if not holders:
                del keys[key]
        gone = [key for key in prefix.blocks if key not in keys]
        if not keys:
            del self._by_key[prefix.tenant, prefix.pool]
        self._by_entry.pop(prefix.entry, None)
        self._turned(prefix.pool, gone)

    def of_entry(self, entry: int) -> Prefix:
        return self._by_entry[entry]

    def of_tenant(self, tenant: str) -> list[Prefix]:
        """Everything kept for a tenant."""
        return list(self._kept.get(tenant, ()))

    def __iter__(self) -> Iterator[Prefix]:
        for kept in self._kept.values():
            yield from kept
