"""Levels: exact conditions of entry and exit, margins, and that they never flap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config import LevelsSettings
from poise.gateway.condition.levels import MIB, Level, LevelInputs, Levels, background_limit, crowding
from poise.metrics.early import LEVELS

QUEUES = {"interactive": 64, "background": 100}
SETTINGS = LevelsSettings(memory_low_mb=200, rss_max_mb=1000, calm_s=10.0, crashes_max=3, crash_window_s=60, recover_s=100)


def levels() -> Levels:
    return Levels(SETTINGS, QUEUES)


def reading(
    interactive: int = 0, background: int = 0, wait_s: float = 0.0, free_mb: int = 4000, rss_mb: int = 100, n_live: int = 0
) -> LevelInputs:
    queued = {"interactive": interactive, "background": background}
    return LevelInputs(queued, wait_s, free_mb * MIB, rss_mb * MIB, n_live)


def test_the_metric_knows_every_level() -> None:
    """In the order from the calmest."""
    assert tuple(Level) == LEVELS


@pytest.mark.parametrize(
    ("below", "at", "level", "back_at", "back"),
    [
        (reading(31), reading(32), Level.BUSY, reading(16), reading(15)),
        (reading(0, 49), reading(0, 50), Level.BUSY, reading(0, 25), reading(0, 24)),
        (reading(wait_s=9.9), reading(wait_s=10.0), Level.BUSY, reading(wait_s=5.0), reading(wait_s=4.9)),
        (reading(0, 89), reading(0, 90), Level.CONSTRAINED, reading(0, 45), reading(0, 44)),
        (reading(free_mb=200), reading(free_mb=199), Level.CONSTRAINED, reading(free_mb=249), reading(free_mb=250)),
        (reading(rss_mb=999), reading(rss_mb=1000), Level.CONSTRAINED, reading(rss_mb=950), reading(rss_mb=949)),
    ],
)
def test_a_condition_begins_at_its_limit_and_ends_by_a_margin(
    below: LevelInputs, at: LevelInputs, level: Level, back_at: LevelInputs, back: LevelInputs
) -> None:
    """At once in, and out only after `calm_s` beyond the margin without a break."""
    machine = levels()
    assert machine.look(0, below) is not level
    assert machine.look(1, at) is level
    for second in range(2, 40):
        assert machine.look(second, back_at) is level
    for second in range(40, 50):
        assert machine.look(second, back) is level
    machine.look(50, at)
    for second in range(51, 61):
        assert machine.look(second, back) is level
    assert machine.look(61, back) is not level


def test_constrained_falls_back_to_busy() -> None:
    """Where the queue still is what makes a server busy."""
    machine = levels()
    assert machine.look(0, reading(0, 95)) is Level.CONSTRAINED
    for second in range(1, 11):
        machine.look(second, reading(0, 40))
    assert machine.look(11, reading(0, 40)) is Level.BUSY


def test_what_is_not_known_changes_nothing() -> None:
    """While there is no engine, levels stay as they are."""
    machine = levels()
    machine.look(0, reading(0, 95, rss_mb=2000))
    for second in range(1, 100):
        assert machine.look(second, LevelInputs()) is Level.CONSTRAINED
    assert levels().look(0, LevelInputs()) is Level.NORMAL


def test_without_limits_memory_is_not_looked_at() -> None:
    """0 switches both off."""
    machine = Levels(LevelsSettings(memory_low_mb=0, rss_max_mb=0), QUEUES)
    assert machine.look(0, reading(free_mb=0, rss_mb=1 << 20)) is Level.NORMAL


def test_repeated_crashes_degrade() -> None:
    """As many as allowed within the window; those before it are forgotten."""
    machine = levels()
    assert [machine.crashed(second) for second in (0, 50, 70)] == [False, False, False]
    assert machine.crashed(100) is True
    assert machine.level is Level.DEGRADED
    assert machine.reasons == ["3 crashes within 60 s"]


def test_the_normal_configuration_is_tried_after_quiet_and_when_nothing_is_live() -> None:
    """And takes as many crashes again to be given up."""
    machine = levels()
    for second in (0, 1, 2):
        machine.crashed(second)
    recovers = []
    for second, n_live in ((101, 0), (102, 1), (103, 0)):
        machine.look(second, reading(n_live=n_live))
        recovers.append(machine.recovers)
    assert recovers == [False, False, True]
    machine.recovered()
    assert machine.level is Level.NORMAL
    assert not machine.crashed(104)


def test_a_crash_in_the_fallback_begins_the_quiet_anew() -> None:
    """It stays degraded for `recover_s` after the last one."""
    machine = levels()
    for second in (0, 1, 2, 80):
        machine.crashed(second)
    recovers = []
    for second in (150, 179, 180):
        machine.look(second, reading())
        recovers.append((machine.degraded, machine.recovers))
    assert recovers == [(True, False), (True, False), (True, True)]


def test_draining_is_above_all_and_never_over() -> None:
    """What else applies is still said, and still held to."""
    machine = levels()
    machine.look(0, reading(0, 95))
    machine.drain(1)
    for second in range(1, 30):
        assert machine.look(second, reading(0, 95)) is Level.DRAINING
    assert machine.load is Level.CONSTRAINED
    assert machine.reasons == [
        "the server was asked to stop",
        "background queue 95 (begins at 50, ends below 25)",
        "background queue 95 (begins at 90, ends below 45)",
    ]


@pytest.mark.parametrize(("load", "most"), [(Level.NORMAL, 100), (Level.BUSY, 50), (Level.CONSTRAINED, 0), (Level.DRAINING, 100)])
def test_background_may_fill_what_the_load_leaves_it(load: Level, most: int) -> None:
    """All, half, nothing. A level that is no load is not asked."""
    assert background_limit(SETTINGS, 100, load) == most


@given(st.lists(st.integers(0, 100), max_size=200))
def test_levels_do_not_flap(queues: list[int]) -> None:
    """Whatever the queue does: a level that was entered is held for at least `calm_s`."""
    machine, entered = levels(), 0
    order = [Level.NORMAL, Level.BUSY, Level.CONSTRAINED]
    former = Level.NORMAL
    for second, queued in enumerate(queues):
        level = machine.look(second, reading(0, queued))
        if order.index(level) > order.index(former):
            entered = second
        elif order.index(level) < order.index(former):
            assert second - entered >= SETTINGS.calm_s
        former = level


@pytest.mark.parametrize(
    ("queued", "full"),
    [
        ({}, 0),
        ({"a": 1000}, 0),  # it waits for nobody but itself
        ({"a": 1000, "b": 1}, 17),
        ({"a": 1000, "b": 1000}, 32),  # half: what two do with their parts makes the server busy, and no more
        ({"a": 20, "b": 20, "c": 10, "d": 10}, 52),
        ({f"t{i}": 1 for i in range(64)}, 64),
    ],
)
def test_a_queue_is_as_full_as_many_accounts_make_it(queued: dict[str, int], full: int) -> None:
    """One account's part, or two's, is no reason to give everybody less."""
    assert crowding(queued, 64) == full
