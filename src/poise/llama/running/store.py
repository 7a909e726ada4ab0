"""The host store's memory: copies of slots' KV state, entry by entry, overwritten before they are given back to the system.

What may be kept, and for whom, the scheduler decides; here lie only the bytes. A state can be put back into slots of the pool
it came from: llama.cpp refuses one from a pool with another number of slots, or with flash attention otherwise."""

from dataclasses import dataclass

from poise.llama.binding.mapping import Bytes


@dataclass(frozen=True, slots=True)
class StoredState:
    """`state`: the bytes llama.cpp wrote for `n_cells` cells of a slot of `pool`, in an array that owns exactly them."""

    pool: str
    n_cells: int
    state: Bytes


class StateStore:
    """Entry id to stored state. It has no bound of its own: the scheduler keeps the budget."""

    def __init__(self) -> None:
        self._entries: dict[int, StoredState] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(len(stored.state) for stored in self._entries.values())

    def put(self, entry: int, stored: StoredState) -> None:
        """Keep a state, which belongs to the store from here on."""
        assert entry not in self._entries, f"entry {entry} is stored already"
        self._entries[entry] = stored

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
        self._entries.pop(entry).state.fill(0)

    def clear(self) -> None:
        """Drop every entry."""
        for entry in list(self._entries):
            self.drop(entry)
