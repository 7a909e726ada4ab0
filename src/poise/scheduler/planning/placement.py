"""Where the cells of sequences are: gives slots, takes them back, and says which KV operations carry that out.

Every change of a slot or of the host store goes through here: the books change at once, the operations are collected
for the next plan, in an order in which each finds what those before it have left. What is decided here is only where cells
go; who gets a slot and who loses one is decided in `planner` and `preemption`."""

from collections.abc import Callable, Iterable
from functools import partial

from poise.scheduler.memory.kv import KvPool
from poise.scheduler.memory.prefix import Prefix
from poise.scheduler.memory.retention import Use
from poise.scheduler.memory.reuse import Found, Reusable, Source
from poise.scheduler.memory.store import Entry, HostStore, Purpose
from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.budget import CostModel
from poise.scheduler.planning.plan import KvOperation, StepResult
from poise.scheduler.planning.slots import cheapest_slot, closing_move
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.request import BLOCK_TOKENS, PreemptionKind
from poise.scheduler.sequence import Sequence
from poise.scheduler.totals import Totals

CARRY_FIRST_US = 3.0
"""First guess of what carrying one cell between a slot and the host store costs."""
CARRY_MEMORY = 0.9
COPIED = 2
"""Cells are carried as often where they go from slot to slot: out, and in."""
ENTRY_OVERHEAD_BYTES = 64


class Placement:
    """The slots of all pools, the host store, and the prefixes kept in both. `turned` is told of a pool's blocks or templates
    that can be found from now on, or not any more."""

    def __init__(
        self,
        policy: SchedulerPolicy,
        models: dict[str, CostModel],
        totals: Totals,
        turned: Callable[[str, Iterable[int | str]], None],
    ) -> None:
        self._policy = policy
        self._models = models
        self._totals = totals
        self.pools = {name: KvPool(name, pool) for name, pool in policy.pools.items()}
        self.store = HostStore(policy.store, totals)
        self._turned = turned
        self.reusable = Reusable(policy.store, turned)
        self.index, self.live, self.templates = self.reusable.index, self.reusable.live, self.reusable.templates
        self.now_ns = 0
        """Set by the scheduler before anything else is called."""
        self.carry_us = CARRY_FIRST_US
        self.n_moves = 0
        self._n_carried = 0
        """Cells that were carried so far, by what is planned."""
        self._operations: list[KvOperation] = []
        self._unclean: dict[str, None] = {}
        """Pools with cells that are to be overwritten."""
        self._swapped: dict[int, Sequence] = {}

    def take_operations(self) -> tuple[KvOperation, ...]:
        """The operations collected since the last call, those last that overwrite what the others have left."""
        operations = (*self._operations, *map(kv.ScrubPool, self._unclean))
        self._operations = []
        self._unclean.clear()
        return operations

    def place(self, sequence: Sequence) -> float:
        """Give the sequence the free slot that costs least, with all of its cells that are known anywhere. Returns what carrying
        them takes, in microseconds."""
        pool = self.pools[sequence.pool]
        found = None
        if sequence.entry < 0:
            found = self.reusable.find(sequence.request, sequence.pool, sequence.blocks, sequence.n_tokens)
        n_carried = self._n_carried
        pool.take(sequence, self._cheapest_slot(sequence, pool, found))
        own = pool.warm.get(sequence.slot)
        if found is not None and own is not None and own.shares(sequence.blocks, found[1]):
            found = own, found[1]  # others have the same, and it is there already
        self._fill(sequence, pool, found)
        self.live.add(sequence)
        return self.carry_us * (self._n_carried - n_carried)

    def _cheapest_slot(self, sequence: Sequence, pool: KvPool, found: Found | None) -> int:
        source, n_cells = found or (None, 0)

        def carried_us(slot: int) -> float:
            warm = pool.warm.get(slot)
            if warm is not None and n_cells and warm.shares(sequence.blocks, n_cells):
                return self._loss_us(warm, warm.n_cells - n_cells)
            copied = n_cells if isinstance(source, Sequence) or (isinstance(source, Prefix) and source.slot >= 0) else 0
            return COPIED * self.carry_us * copied + (self._loss_us(warm, warm.n_cells) if warm is not None else 0.0)

        return cheapest_slot(pool.free, pool.holders, self._models[pool.name].fixed_us, sequence.n_likely, carried_us)

    def _loss_us(self, warm: Prefix, n_cells: int) -> float:
        """What it costs that the last `n_cells` cells of a warm slot go: to carry them out, and in when they are wanted, or to
        compute them again."""
        if n_cells < 2 * BLOCK_TOKENS or self.index.covers(warm):
            return 0.0
        again_us = self._again_us(warm, n_cells)
        fits = warm.n_cells * self._policy.pools[warm.pool].cell_bytes <= self.store.quota(warm.tenant)
        lost_us = min(again_us, COPIED * self.carry_us * warm.n_cells) if fits else again_us
        return lost_us * warm.use.worth(self.now_ns)

    def _fill(self, sequence: Sequence, pool: KvPool, found: Found | None) -> None:
        """Empty the sequence's new slot, and put what is known of it there."""
        warm = pool.warm.pop(sequence.slot, None)
        if sequence.entry >= 0:
            self._empty(pool, sequence.slot, warm)
            self._restore(sequence)
        elif found is None:
            self._empty(pool, sequence.slot, warm)
        else:
            self._note_use(sequence, found[0])
            self._reuse(sequence, pool, warm, *found)
            self._totals.prefix_hits += 1

    def _note_use(self, sequence: Sequence, source: Source) -> None:
        """Who goes on with a kept prefix goes on with its rhythm."""
        if isinstance(source, Prefix):
            use = source.use.again(sequence.arrived_ns)
            source.use.used_ns, source.use.gap_ns = use.used_ns, use.gap_ns
            sequence.gap_ns = use.gap_ns

    def swap_out(self, sequence: Sequence) -> PreemptionKind:
        """Take the sequence's slot and keep its cells in the host store, or drop them where that is cheaper or all there is."""
        pool = self.pools[sequence.pool]
        self.live.remove(sequence)
        slot = pool.release(sequence)
        request_id, n_cells = sequence.request.request_id, sequence.n_computed
        entry = self._swap_entry(sequence) if n_cells else None
        if entry is not None:
            self._operations.append(kv.StoreSlot(pool.name, slot, entry.number, n_cells))
            sequence.entry = entry.number
            self._swapped[entry.number] = sequence
        else:
            sequence.n_recomputed += n_cells
            sequence.n_computed = 0
        self._operations.append(kv.ReleaseSlot(pool.name, slot, request_id))
        return PreemptionKind.SWAP if entry is not None else PreemptionKind.DROP

    def discard(self, sequence: Sequence) -> None:
        """Give up the sequence's cells, wherever they are, and its slot."""
        sequence.n_recomputed += sequence.n_computed
        self.retire(sequence, keep=False)
        sequence.n_computed = 0

    def retire(self, sequence: Sequence, *, keep: bool) -> None:
        """The sequence has ended. With `keep` its cells stay where they are, in its slot or in the host store, if they may serve
        another request."""
        store, entry = self._policy.store, sequence.entry
        blocks = tuple(sequence.blocks[: sequence.n_computed // BLOCK_TOKENS])
        keep = keep and store.prefix_reuse and bool(blocks) and sequence.n_computed >= store.prefix_min_cells
        use = Use(self.now_ns, sequence.gap_ns)
        prefix = Prefix(sequence.request.tenant, sequence.pool, blocks, sequence.n_computed, entry=entry, use=use)
        if entry >= 0:
            sequence.entry = -1
            if not (keep and self._keep_entry(prefix)):
                self._drop(entry)
        if sequence.slot < 0:
            return
        pool = self.pools[sequence.pool]
        self.live.remove(sequence)
        slot, request_id = pool.release(sequence), sequence.request.request_id
        if keep:
            prefix.slot = slot
            pool.warm[slot] = prefix
            self.index.add(prefix)
        else:
            self._operations.append(kv.ReleaseSlot(pool.name, slot, request_id))

    def pin(self, sequence: Sequence, name: str) -> None:
        """Keep the running sequence's cells in the store as a template, replacing an older one of that name."""
        self.unpin(sequence.pool, name)
        entry = self._admit(Purpose.TEMPLATE, sequence.request.tenant, sequence.pool, sequence.n_computed)
        if entry is not None:
            self._operations.append(kv.StoreSlot(sequence.pool, sequence.slot, entry.number, sequence.n_computed))
            self.templates[sequence.pool, name] = entry
            self._turned(sequence.pool, [name])

    def unpin(self, pool: str, name: str) -> None:
        entry = self.templates.pop((pool, name), None)
        if entry is not None:
            self._drop(entry.number)
            self._turned(pool, [name])

    def forget(self, tenant: str) -> tuple[int, int]:
        """Drop every kept prefix of a tenant; returns how many there were, and their cells."""
        kept = self.index.of_tenant(tenant)
        for prefix in kept:
            self.index.remove(prefix)
            if prefix.slot >= 0:
                del self.pools[prefix.pool].warm[prefix.slot]
                self._operations.append(kv.ReleaseSlot(prefix.pool, prefix.slot, 0))
            else:
                self._drop(prefix.entry)
        return len(kept), sum(prefix.n_cells for prefix in kept)

    def kept_bytes(self, tenant: str) -> int:
        """Bytes that a tenant's kept prefixes take, in slots and in the host store."""
        return sum(
            self._policy.pools[p.pool].cell_bytes * p.n_cells if p.slot >= 0 else self.store[p.entry].n_bytes
            for p in self.index.of_tenant(tenant)
        )

    def scrub(self, pool: str = "") -> None:
        """Have all cells overwritten that no slot holds, in this pool or in all, after all that the next plan does with them."""
        self._unclean |= dict.fromkeys([pool] if pool else self.pools)

    def close_holes(self) -> None:
        """Rule R8."""
        for name, pool in self.pools.items():
            if not pool.has_held_holes(self._policy.hole_steps):
                continue
            pass_us, cell_us = self._models[name].fixed_us, COPIED * self.carry_us
            move = closing_move(pool.free, pool.holders, pass_us, cell_us, partial(self._emptied_us, pool))
            if move is not None:
                source, target = move
                self._empty(pool, target, pool.warm.pop(target, None))
                sequence = pool.move(source, target)
                self._operations.append(kv.MoveSlot(name, source, target, sequence.request.request_id))
                self.n_moves += 1

    def _emptied_us(self, pool: KvPool, slot: int) -> float:
        warm = pool.warm.get(slot)
        return self._loss_us(warm, warm.n_cells) if warm is not None else 0.0

    def settle(self, result: StepResult) -> list[tuple[Sequence, int]]:
        """Account for a plan's operations; returns the sequences whose cells were lost in the host store, and how many were."""
        for number, n_bytes in result.stored:
            if number in self.store:
                self.store.settle(number, n_bytes)
        lost = []
        for number in result.unstored:
            if number not in self.store:
                continue
            entry = self.store.remove(number)
            if entry.purpose is Purpose.SWAP:
                sequence = self._swapped.pop(number)
                lost.append((sequence, sequence.n_computed))
                sequence.n_computed, sequence.entry = 0, -1
            elif entry.purpose is Purpose.PREFIX:
                self.index.remove(self.index.of_entry(number))
            else:
                (gone,) = (key for key, kept in self.templates.items() if kept is entry)
                del self.templates[gone]
                self._turned(gone[0], [gone[1]])
        if result.carried_cells:
            measured = result.carried_us / result.carried_cells
            self.carry_us = CARRY_MEMORY * self.carry_us + (1 - CARRY_MEMORY) * measured
        return lost

    def _restore(self, sequence: Sequence) -> None:
        """Load a swapped sequence into its new slot."""
        entry = sequence.entry
        request_id, n_cells = sequence.request.request_id, sequence.n_computed
        self._operations.append(kv.LoadSlot(sequence.pool, sequence.slot, entry, n_cells, request_id))
        self._totals.loaded_bytes += self.store[entry].n_bytes
        self._n_carried += n_cells
        self._drop(entry)
        sequence.entry = -1

    def _reuse(self, sequence: Sequence, pool: KvPool, warm: Prefix | None, source: Source, n_cells: int) -> None:
        """Put the first `n_cells` cells of the source into the sequence's slot, in which `warm` may lie."""
        slot, request_id = sequence.slot, sequence.request.request_id
        if source is warm:
            self._spill(pool, warm, unless_shared=n_cells)
            self.index.remove(warm)
            if warm.n_cells > n_cells:
                self._operations.append(kv.TrimSlot(pool.name, slot, n_cells))
        elif isinstance(source, Sequence) or (isinstance(source, Prefix) and source.slot >= 0):
            self._empty(pool, slot, warm)
            self._operations.append(kv.CopySlot(pool.name, source.slot, slot, n_cells, request_id))
            self._n_carried += COPIED * n_cells
        else:
            entry = source if isinstance(source, Entry) else self.store[source.entry]
            entry.in_use = True
            self._empty(pool, slot, warm)
            entry.in_use = False
            self._totals.loaded_bytes += entry.n_bytes
            self._n_carried += n_cells
            self._operations.append(kv.LoadSlot(pool.name, slot, entry.number, n_cells, request_id))
        sequence.n_computed = n_cells

    def _empty(self, pool: KvPool, slot: int, warm: Prefix | None) -> None:
        """Make a free slot empty; what was warm in it goes to the host store if that is worth it."""
        if warm is not None:
            self._spill(pool, warm)
            self.index.remove(warm)
            self._operations.append(kv.ReleaseSlot(pool.name, slot, 0))

    def _again_us(self, warm: Prefix, n_cells: int) -> float:
        """What it takes to compute the last of its cells again."""
        return self._models[warm.pool].chunk_us(is_prompt=True, start=warm.n_cells - n_cells, n_tokens=n_cells)

    def _spill(self, pool: KvPool, warm: Prefix, unless_shared: int | None = None) -> None:
        """Keep a copy of a warm slot in the store, unless its cells are kept elsewhere, or live on in who takes the slot, but for
        so few that computing them again costs less than carrying all."""
        if self.index.covers(warm):
            return
        if unless_shared is not None:
            n_lost = warm.n_cells - unless_shared
            few = n_lost < 2 * BLOCK_TOKENS
            if few or self._again_us(warm, n_lost) <= COPIED * self.carry_us * warm.n_cells:
                return
        entry = self._admit(Purpose.PREFIX, warm.tenant, warm.pool, warm.n_cells)
        if entry is None:
            return
        entry.use = warm.use
        stored = Prefix(warm.tenant, warm.pool, warm.blocks, warm.n_cells, entry=entry.number, use=warm.use)
        self._n_carried += warm.n_cells
        self._operations.append(kv.StoreSlot(pool.name, warm.slot, entry.number, warm.n_cells))
        self._index_stored(stored)

    def _index_stored(self, stored: Prefix) -> None:
        for nested in self.index.nested(stored):
            if not self.store[nested.entry].in_use:
                self._discard(nested.entry)
        self.index.add(stored)

    def _keep_entry(self, prefix: Prefix) -> bool:
        """From a swapped sequence that has ended its entry becomes a prefix, if its tenant's quota has room for it."""
        entry = self.store.remove(prefix.entry)
        is_covered = self.index.covers(prefix)
        victims = None if is_covered else self.store.victims(Purpose.PREFIX, prefix.tenant, entry.n_bytes, self.now_ns)
        if victims is not None:
            for victim in victims:
                self._discard(victim.number, evicted=True)
            entry.purpose, entry.tenant, entry.use = Purpose.PREFIX, prefix.tenant, prefix.use
        self.store.put(entry)
        if victims is None:
            return False
        del self._swapped[prefix.entry]
        self._index_stored(prefix)
        return True

    def _swap_entry(self, sequence: Sequence) -> Entry | None:
        """Room for a swapped sequence, if there is any and carrying it out and in costs less than computing it again."""
        n_cells = sequence.n_computed
        again_us = self._models[sequence.pool].chunk_us(is_prompt=True, start=0, n_tokens=n_cells)
        if 2 * self.carry_us * n_cells >= again_us:
            return None
        entry = self._admit(Purpose.SWAP, sequence.request.account, sequence.pool, n_cells)
        if entry is None:
            self._totals.unstored += 1
            sequence.refill = n_cells
        return entry

    def _admit(self, purpose: Purpose, tenant: str, pool: str, n_cells: int) -> Entry | None:
        """A new entry; prefixes are evicted to make room. None when that is not enough."""
        n_bytes = n_cells * self._policy.pools[pool].cell_bytes + ENTRY_OVERHEAD_BYTES
        victims = self.store.victims(purpose, tenant, n_bytes, self.now_ns)
        if victims is None:
            return None
        for victim in victims:
            self._discard(victim.number, evicted=True)
        return self.store.add(purpose, tenant, pool, n_cells, n_bytes)

    def shrink(self, budget_bytes: int) -> None:
        """Give the store another budget. Prefixes that are too much go; what is swapped and declared stays."""
        self.store.budget_bytes = budget_bytes
        for victim in self.store.surplus(self.now_ns):
            self._discard(victim.number, evicted=True)

    def _discard(self, number: int, *, evicted: bool = False) -> None:
        """Drop a stored prefix."""
        self.index.remove(self.index.of_entry(number))
        self._drop(number, evicted=evicted)

    def _drop(self, number: int, *, evicted: bool = False) -> None:
        self.store.remove(number, evicted=evicted)
        self._swapped.pop(number, None)
        self._operations.append(kv.DropEntry(number))
