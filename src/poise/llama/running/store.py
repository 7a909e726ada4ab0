"""The host store's memory: copies of slots' KV state, entry by entry, overwritten before they are given back to the system.

What may be kept, and for whom, the scheduler decides; here lie only the bytes. They are in shared memory, which outlives the
engine, where there is an arena, and else in the engine's own. A state can be put back into slots of the pool it came from:
llama.cpp refuses one from a pool with another number of slots, or with flash attention otherwise."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from poise.engine.arena import Arena
from poise.llama.binding.mapping import Bytes, allocate
from poise.scheduler.memory.stored import StoredPrefix


@dataclass(frozen=True, slots=True)
class StoredState:
    """`state`: the bytes llama.cpp wrote for `n_cells` cells of a slot of `pool`, in an array that owns exactly them."""

    pool: str
    n_cells: int
    state: Bytes


class StateStore:
    """Entry id to stored state. It has no bound of its own: the scheduler keeps the budget."""

    def __init__(self, arena: Arena | None = None) -> None:
        self._entries: dict[int, StoredState] = {}
        self._arena = arena

    @property
    def n_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(len(stored.state) for stored in self._entries.values())

    def reserve(self, entry: int, pool: str, n_cells: int, n_bytes: int) -> Bytes:
        """Memory for a state, which is to be written at once. Raises RunnerError."""
        assert entry not in self._entries, f"entry {entry} is stored already"
        if self._arena is None:
            state = allocate(n_bytes)
        else:
            state = np.frombuffer(self._arena.reserve(entry, n_bytes, n_cells), np.uint8)
        self._entries[entry] = StoredState(pool, n_cells, state)
        return state

    def inherit(self, entries: Iterable[StoredPrefix]) -> None:
        """What another engine has left in the arena."""
        for entry in entries:
            assert self._arena is not None, "there is nothing to inherit"
            state = np.frombuffer(self._arena.memory(entry.number), np.uint8)
            self._entries[entry.number] = StoredState(entry.pool, entry.n_cells, state)

    def get(self, entry: int, pool: str, n_cells: int) -> StoredState:
        """The state of an entry of this pool that holds at least `n_cells` cells."""
        assert entry in self._entries, f"there is no entry {entry}"
        stored = self._entries[entry]
        assert stored.pool == pool, f"entry {entry} comes from pool {stored.pool}, it cannot go to pool {pool}"
        assert 0 < n_cells <= stored.n_cells, f"entry {entry} holds {stored.n_cells} cells, asked for {n_cells}"
        return stored

    def drop(self, entry: int) -> None:
        """Forget an entry. Whoever still has a view of it reads nothing of a tenant in it."""
        assert entry in self._entries, f"there is no entry {entry}"
        stored = self._entries.pop(entry)
        if self._arena is None:
            stored.state.fill(0)
        else:
            self._arena.drop(entry)

    def clear(self) -> None:
        """The end: entries of this engine alone are dropped; those in an arena are there for the next one."""
        for entry in list(self._entries) if self._arena is None else ():
            self.drop(entry)
        self._entries.clear()
