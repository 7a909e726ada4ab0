"""The simulated runner beyond the contract: what carrying costs, and faults on demand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poise.engine.ports import Row, RunnerError
from poise.scheduler.planning.plan import CopySlot, DropEntry, KvOperation, LoadSlot, MoveSlot, ReleaseSlot, StoreSlot, TrimSlot
from poise.wire.messages import PoolInfo
from poise_lab.sim.runner import VirtualClock
from tests.sim.exact_runner import ExactRunner, Fault

POOLS = [PoolInfo("short", 4, 256, True, 0), PoolInfo("long", 2, 1024, True, 0, cell_bytes=500)]


class Rig:
    """A runner with 100 cells in slot 0 of the short pool, stored as entry 1 too."""

    def __init__(self, carry_us_per_cell: float = 3.0, fault: Fault | None = None) -> None:
        self.clock = VirtualClock()
        self.runner = ExactRunner(POOLS, clock=self.clock, carry_us_per_cell=carry_us_per_cell, fault=fault)
        self.runner.execute("short", [Row(1, 0, 0, list(range(100)), False)])
        self.runner.apply(StoreSlot("short", 0, 1, 100))

    def took_us(self, action: Callable[[], object]) -> float:
        began_ns = self.clock.now_ns()
        action()
        return (self.clock.now_ns() - began_ns) / 1000


@pytest.mark.parametrize(
    ("operation", "n_cells"),
    [
        (StoreSlot("short", 0, 2, 100), 100),
        (LoadSlot("short", 1, 1, 100, 7), 100),
        (LoadSlot("short", 1, 1, 10, 7), 100),
        (CopySlot("short", 0, 1, 10, 7), 100),
        (MoveSlot("short", 0, 1, 7), 100),
        (MoveSlot("short", 2, 1, 7), 0),
        (TrimSlot("short", 0, 10), 0),
        (ReleaseSlot("short", 0, 7), 0),
        (DropEntry(1), 0),
    ],
    ids=str,
)
def test_carrying_takes_its_time(operation: KvOperation, n_cells: int) -> None:
    """A state is carried whole, as llama.cpp does it; what carries nothing takes no time."""
    for per_cell in (3.0, 0.5):
        rig = Rig(per_cell)
        assert rig.took_us(lambda rig=rig: rig.runner.apply(operation)) == n_cells * per_cell  # type: ignore[misc]


def test_stored_bytes_follow_the_pool() -> None:
    """The pool's cell_bytes, or 64 where it has none."""
    runner = Rig().runner
    assert runner.stored_bytes == 100 * 64
    runner.execute("long", [Row(2, 0, 0, list(range(30)), False)])
    assert runner.apply(StoreSlot("long", 0, 2, 30)) == 30 * 500
    assert runner.stored_bytes == 100 * 64 + 30 * 500


def test_faults_are_asked_for_passes_and_for_what_carries() -> None:
    """Before each of them, once."""
    asked: list[tuple[str, object]] = []

    def fault(what: str, detail: object) -> bool:
        asked.append((what, detail))
        return False

    runner = Rig(fault=fault).runner
    carrying: list[KvOperation] = [LoadSlot("short", 1, 1, 10, 7), CopySlot("short", 0, 2, 10, 8), MoveSlot("short", 1, 3, 7)]
    for operation in [*carrying, TrimSlot("short", 3, 5), ReleaseSlot("short", 3, 7), DropEntry(1)]:
        runner.apply(operation)
    assert asked == [
        ("execute", "short"),
        ("apply", StoreSlot("short", 0, 1, 100)),
        *[("apply", operation) for operation in carrying],
    ]


def test_a_failed_pass_takes_its_time_and_empties_its_slots_only() -> None:
    """As a failure inside llama.cpp does; the next pass is fine."""
    failing = False
    rig = Rig(fault=lambda what, detail: failing and (what, detail) == ("execute", "short"))
    runner = rig.runner
    runner.execute("short", [Row(2, 1, 0, [1, 2, 3], False)])
    failing = True

    def execute() -> None:
        with pytest.raises(RunnerError, match="pool short"):
            runner.execute("short", [Row(1, 0, 100, [5], False), Row(3, 2, 0, [5, 6], False)])

    assert rig.took_us(execute) > 0
    runner.execute("long", [Row(4, 0, 0, [1], False)])
    failing = False
    assert [runner.slot_positions("short", slot) for slot in range(4)] == [-1, 2, -1, -1]
    assert runner.execute("short", [Row(1, 0, 0, [5], False)]) == []
