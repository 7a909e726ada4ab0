"""The host store's memory, without a model."""

from __future__ import annotations

import numpy as np
import pytest

from poise.llama.running.store import StateStore, StoredState


def stored(n_bytes: int, n_cells: int = 10, pool: str = "short") -> StoredState:
    return StoredState(pool, n_cells, np.full(n_bytes, 7, np.uint8))


def test_bytes_are_counted_by_what_the_arrays_hold() -> None:
    """Not by cells: a state has a header and positions too."""
    store = StateStore()
    store.put(1, stored(300))
    store.put(2, stored(50))
    assert store.n_bytes == 350
    store.drop(1)
    assert store.n_bytes == 50


def test_an_entry_is_found_with_as_many_cells_as_it_holds_or_fewer() -> None:
    """It comes back whole, as it was put."""
    store, state = StateStore(), stored(300)
    store.put(1, state)
    assert store.get(1, "short", 10) is state
    assert store.get(1, "short", 1) is state


@pytest.mark.parametrize(
    ("entry", "pool", "n_cells", "words"),
    [
        (2, "short", 10, "no entry 2"),
        (1, "long", 10, "cannot go to pool long"),
        (1, "short", 11, "holds 10"),
        (1, "short", 0, "holds 10"),
    ],
)
def test_what_is_not_there_is_a_mistake(entry: int, pool: str, n_cells: int, words: str) -> None:
    """The scheduler's books say what there is."""
    store = StateStore()
    store.put(1, stored(300))
    with pytest.raises(AssertionError, match=words):
        store.get(entry, pool, n_cells)


def test_an_entry_is_put_once_and_dropped_once() -> None:
    """Anything else would be a leak or a mix-up."""
    store = StateStore()
    store.put(1, stored(300))
    with pytest.raises(AssertionError, match="already"):
        store.put(1, stored(300))
    store.drop(1)
    with pytest.raises(AssertionError, match="no entry 1"):
        store.drop(1)


def test_memory_is_overwritten_before_it_is_freed() -> None:
    """One entry, or all of them at the end."""
    store = StateStore()
    states = [stored(300), stored(50), stored(20)]
    for entry, state in enumerate(states):
        store.put(entry, state)
    store.drop(1)
    assert [bool(state.state.any()) for state in states] == [True, False, True]
    store.clear()
    assert not any(state.state.any() for state in states)
    assert store.n_bytes == 0
    store.clear()
