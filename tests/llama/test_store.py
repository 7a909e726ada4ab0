"""The host store's memory, without a model."""

from __future__ import annotations

import pytest

from poise.engine.arena import Arena, make_memory
from poise.llama.binding.mapping import Bytes
from poise.llama.running.store import StateStore


@pytest.fixture(params=["private", "shared"])
def store(request: pytest.FixtureRequest) -> StateStore:
    if request.param == "private":
        return StateStore()
    arena = Arena(make_memory(1 << 20))
    arena.inherit(b"")
    return StateStore(arena)


def put(store: StateStore, entry: int, n_bytes: int) -> Bytes:
    state = store.reserve(entry, "short", 10, n_bytes)
    state.fill(7)
    return state


def test_bytes_are_counted_by_what_the_arrays_hold(store: StateStore) -> None:
    """Not by cells: a state has a header and positions too."""
    put(store, 1, 300)
    put(store, 2, 50)
    assert store.n_bytes == 350
    store.drop(1)
    assert store.n_bytes == 50


def test_an_entry_is_found_with_as_many_cells_as_it_holds_or_fewer(store: StateStore) -> None:
    """It comes back whole, as it was put."""
    state = put(store, 1, 300)
    assert store.get(1, "short", 10).state is state
    assert store.get(1, "short", 1).state is state


@pytest.mark.parametrize(
    ("entry", "pool", "n_cells", "words"),
    [
        (2, "short", 10, "no entry 2"),
        (1, "long", 10, "cannot go to pool long"),
        (1, "short", 11, "holds 10"),
        (1, "short", 0, "holds 10"),
    ],
)
def test_what_is_not_there_is_a_mistake(store: StateStore, entry: int, pool: str, n_cells: int, words: str) -> None:
    """The scheduler's books say what there is."""
    put(store, 1, 300)
    with pytest.raises(AssertionError, match=words):
        store.get(entry, pool, n_cells)


def test_an_entry_is_put_once_and_dropped_once(store: StateStore) -> None:
    """Anything else would be a leak or a mix-up."""
    put(store, 1, 300)
    with pytest.raises(AssertionError, match="already"):
        put(store, 1, 300)
    store.drop(1)
    with pytest.raises(AssertionError, match="no entry 1"):
        store.drop(1)


def test_memory_is_overwritten_before_it_is_freed(store: StateStore) -> None:
    """One entry, and the others stay as they are."""
    states = [put(store, entry, n_bytes) for entry, n_bytes in enumerate((300, 50, 20))]
    store.drop(1)
    assert [bool(state.any()) for state in states] == [True, False, True]


def test_at_the_end_only_what_another_engine_cannot_have_is_overwritten() -> None:
    """An arena is the gateway's."""
    arena = Arena(make_memory(1 << 20))
    arena.inherit(b"")
    for store, stays in ((StateStore(), False), (StateStore(arena), True)):
        states = [put(store, entry, 300) for entry in range(3)]
        store.clear()
        assert [bool(state.any()) for state in states] == [stays] * 3
        assert store.n_bytes == 0
        store.clear()
