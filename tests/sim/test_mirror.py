"""The third account of the cells: what it follows, and what it refuses to believe."""

from __future__ import annotations

import pytest

from poise.scheduler.planning.plan import (
    Batch,
    BatchResult,
    Chunk,
    CopySlot,
    DropEntry,
    KvOperation,
    LoadSlot,
    MoveSlot,
    ReleaseSlot,
    StepPlan,
    StepResult,
    StoreSlot,
    TrimSlot,
)
from tests.sim.checking.mirror import Mirror


def carry_out(
    mirror: Mirror,
    *operations: KvOperation,
    chunks: tuple[tuple[int, int, int, int], ...] = (),
    failed: str = "",
    unstored: tuple[int, ...] = (),
    lost: tuple[int, ...] = (),
) -> None:
    """One step; a chunk is (request, slot, start, tokens)."""
    rows = tuple(Chunk(r, s, start, n, False, True) for r, s, start, n in chunks)
    batches = (Batch("short", rows, 0),) if rows else ()
    results = (BatchResult(1, (), failed),) if rows else ()
    mirror.carry_out(StepPlan(0, operations, batches), StepResult(results, (), unstored, lost))


@pytest.fixture
def mirror() -> Mirror:
    """Requests 1 and 2 of tenant a, 3 of tenant b; 1 has ten cells in slot 0."""
    mirror = Mirror()
    for request_id, tenant in ((1, "a"), (2, "a"), (3, "b")):
        mirror.add(request_id, tenant)
    carry_out(mirror, chunks=((1, 0, 0, 10),))
    return mirror


def test_cells_are_followed_wherever_they_go(mirror: Mirror) -> None:
    """Moved, stored, loaded, copied, trimmed, released."""
    carry_out(mirror, MoveSlot("short", 0, 2, 1), StoreSlot("short", 2, 7, 10), chunks=((1, 2, 10, 1),))
    carry_out(mirror, ReleaseSlot("short", 2, 1), LoadSlot("short", 0, 7, 8, 2), CopySlot("short", 0, 1, 4, 2))
    carry_out(mirror, TrimSlot("short", 0, 5))
    assert {slot: cells.n for slot, cells in mirror.slots.items()} == {("short", 0): 5, ("short", 1): 4}
    assert mirror.stored_cells() == {"short": 10}
    carry_out(mirror, DropEntry(7))
    assert mirror.stored_cells() == {}


def test_what_failed_did_not_happen(mirror: Mirror) -> None:
    """A store without an entry, a load without cells, and a batch whose slots can only be released."""
    carry_out(mirror, StoreSlot("short", 0, 7, 10), unstored=(7,))
    assert mirror.stored_cells() == {}
    carry_out(mirror, StoreSlot("short", 0, 8, 10))
    carry_out(mirror, LoadSlot("short", 1, 8, 10, 2), chunks=((2, 1, 10, 3),), lost=(2,))
    assert ("short", 1) not in mirror.slots
    carry_out(mirror, chunks=((1, 0, 10, 1),), failed="broken")
    with pytest.raises(AssertionError, match="holds None cells"):
        carry_out(mirror, chunks=((1, 0, 11, 1),))


WRONG: dict[str, tuple[tuple[KvOperation, ...], str]] = {
    "load of another tenant's entry": ((StoreSlot("short", 0, 7, 10), LoadSlot("short", 1, 7, 10, 3)), "invariant 12"),
    "copy of another tenant's slot": ((CopySlot("short", 0, 1, 4, 3),), "invariant 12"),
    "load of nothing": ((LoadSlot("short", 1, 7, 4, 2),), "no such entry"),
    "load of too much": ((StoreSlot("short", 0, 7, 10), LoadSlot("short", 1, 7, 11, 2)), "has 10 cells"),
    "load into a full slot": ((StoreSlot("short", 0, 7, 10), LoadSlot("short", 0, 7, 4, 2)), "the target holds"),
    "move into a full slot": ((CopySlot("short", 0, 1, 4, 2), MoveSlot("short", 0, 1, 1)), "the target holds"),
    "store under a number in use": ((StoreSlot("short", 0, 7, 10), StoreSlot("short", 0, 7, 10)), "there already"),
    "drop of nothing": ((DropEntry(7),), "no such entry"),
    "trim of an empty slot": ((TrimSlot("short", 3, 1),), "is trimmed and empty"),
}


@pytest.mark.parametrize(("operations", "complaint"), WRONG.values(), ids=WRONG.keys())
def test_impossible_operations_are_refused(mirror: Mirror, operations: tuple[KvOperation, ...], complaint: str) -> None:
    """Each one names what it found."""
    with pytest.raises(AssertionError, match=complaint):
        carry_out(mirror, *operations)


def test_going_on_from_another_tenants_warm_cells_is_refused(mirror: Mirror) -> None:
    """The one way in which no operation carries the cells: the slot was simply given away."""
    mirror.forget(1)
    with pytest.raises(AssertionError, match="invariant 12"):
        carry_out(mirror, chunks=((3, 0, 10, 1),))


def test_a_template_serves_everybody(mirror: Mirror) -> None:
    """The operator's cells are the only ones that cross."""
    mirror.add(-1, "")
    carry_out(mirror, chunks=((-1, 4, 0, 6),))
    carry_out(mirror, StoreSlot("short", 4, 9, 6), LoadSlot("short", 1, 9, 6, 2), LoadSlot("short", 2, 9, 6, 3))
    assert [mirror.slots["short", slot].tenant for slot in (1, 2)] == ["a", "b"]
