"""What of the host store outlives an engine: what is copied there in advance, and what is taken over from an engine before.

Where the store's memory is not the engine's own (`engine/arena.py`), whatever is in it when the engine dies is there for the next
one. Cells that stay warm in a free slot are not. So they are *written through*: copied, one slot a step, when the step has
room for it or there is nothing else to do. Such a copy takes only room that nobody uses, and is the first to go when somebody
wants it, for as long as its cells are in their slot as well. A slot is written through once; when its cells go on in another
request, the copy is a shorter prefix like any, until the longer one is stored and takes its place."""

from collections.abc import Sequence as SequenceOf

from poise.scheduler.memory.kv import KvPool
from poise.scheduler.memory.prefix import Prefix
from poise.scheduler.memory.retention import Use
from poise.scheduler.memory.reuse import Source
from poise.scheduler.memory.store import Entry, Purpose
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.placement import ENTRY_OVERHEAD_BYTES, Placement
from poise.scheduler.request import BLOCK_TOKENS
from poise.scheduler.sequence import Sequence


class LastingPlacement(Placement):
    """A placement whose store outlives the engine."""

    def write_through(self, left_us: float | None) -> None:
        """Plan the copy of one warm slot that is kept nowhere else, the newest first, if it takes at most `left_us`. None: nobody
        waits for this step."""
        if not self._policy.store.write_through:
            return
        for pool in self.pools.values():
            for warm in reversed(pool.warm.values()):
                is_wanted = warm.copy < 0 and (left_us is None or self.carry_us * warm.n_cells <= left_us)
                if is_wanted and not self.index.is_stored(warm) and self._copy(pool, warm):
                    return

    def _copy(self, pool: KvPool, warm: Prefix) -> bool:
        """Store a copy where there is room, or will be when the shorter prefixes have gone whose place it takes."""
        n_bytes = warm.n_cells * pool.policy.cell_bytes + ENTRY_OVERHEAD_BYTES
        nested = self.index.nested(warm)
        if not self.store.has_room(warm.tenant, n_bytes):
            if not self.store.has_room(warm.tenant, n_bytes, sum(self.store[n.entry].n_bytes for n in nested)):
                return False
            for shorter in nested:
                self._discard(shorter.entry)
        entry = self.store.add(Purpose.PREFIX, warm.tenant, pool.name, warm.n_cells, n_bytes)
        entry.is_spare, entry.use, warm.copy = True, warm.use, entry.number
        self._operations.append(kv.StoreSlot(pool.name, warm.slot, entry.number, warm.n_cells))
        self._index_stored(Prefix(warm.tenant, pool.name, warm.blocks, warm.n_cells, entry=entry.number, use=warm.use))
        return True

    def _loss_us(self, warm: Prefix, n_cells: int) -> float:
        """What has a copy is only carried in when it is wanted."""
        if n_cells >= 2 * BLOCK_TOKENS and warm.copy in self.store:
            return self.carry_us * warm.n_cells * warm.use.worth(self.now_ns)
        return super()._loss_us(warm, n_cells)

    def _empty(self, pool: KvPool, slot: int, warm: Prefix | None) -> None:
        super()._empty(pool, slot, warm)
        self._has_gone(warm)

    def _reuse(self, sequence: Sequence, pool: KvPool, warm: Prefix | None, source: Source, n_cells: int) -> None:
        super()._reuse(sequence, pool, warm, source, n_cells)
        self._has_gone(warm)

    def _has_gone(self, warm: Prefix | None) -> None:
        """From now on its copy is the only one."""
        if warm is not None and warm.copy in self.store:
            self.store[warm.copy].is_spare = False

    def forget(self, tenant: str) -> tuple[int, int]:
        """As ever; a slot and its copy are one prefix."""
        copies = [p for p in self.index.of_tenant(tenant) if p.entry >= 0 and self.store[p.entry].is_spare]
        n_prefixes, n_cells = super().forget(tenant)
        return n_prefixes - len(copies), n_cells - sum(prefix.n_cells for prefix in copies)

    def describe(self, number: int) -> StoredPrefix | None:
        """An entry, if the next engine may have it: a prefix, or the cells of a swapped request, which are one there. Templates
        are computed again, and of an erased tenant nothing is kept."""
        if number not in self.store:
            return None
        entry = self.store[number]
        if entry.purpose is Purpose.PREFIX:
            prefix = self.index.of_entry(number)
            tenant, blocks = prefix.tenant, prefix.blocks
        elif entry.purpose is Purpose.SWAP and not (sequence := self._swapped[number]).erased:
            tenant, blocks = sequence.request.tenant, tuple(sequence.blocks[: entry.n_cells // BLOCK_TOKENS])
        else:
            return None
        return StoredPrefix(number, tenant, entry.pool, entry.n_cells, entry.n_bytes, blocks) if blocks else None

    def inherit(self, entries: SequenceOf[StoredPrefix], now_ns: int) -> None:
        """Take over what an engine before this one has left in the store, the longest unused first, as if it was stored in this
        order; what finds no room or is of no use is dropped."""
        self.now_ns = now_ns
        for i, stored in enumerate(entries, now_ns - len(entries)):  # times of use in this order, and just now
            use = Use(i)
            prefix = Prefix(stored.tenant, stored.pool, stored.blocks, stored.n_cells, entry=stored.number, use=use)
            victims = None
            if self._is_usable(prefix):
                victims = self.store.victims(Purpose.PREFIX, stored.tenant, stored.n_bytes, now_ns)
            for victim in victims or ():
                self._discard(victim.number, evicted=True)
            entry = Entry(stored.number, Purpose.PREFIX, stored.tenant, stored.pool, stored.n_cells, stored.n_bytes, use=use)
            self.store.take_over(entry)
            if victims is None:
                self._drop(stored.number)
            else:
                self._index_stored(prefix)
                self._totals.inherited_entries += 1

    def _is_usable(self, prefix: Prefix) -> bool:
        store, pool = self._policy.store, self.pools.get(prefix.pool)
        fits = pool is not None and store.prefix_min_cells <= prefix.n_cells <= pool.policy.slot_cells
        is_prefix = 0 < len(prefix.blocks) <= prefix.n_cells // BLOCK_TOKENS
        return store.prefix_reuse and fits and is_prefix and not self.index.covers(prefix)
