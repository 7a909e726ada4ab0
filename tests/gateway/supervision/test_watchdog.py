"""The watchdog: what is a hang, what is not."""

from __future__ import annotations

import pytest

from poise.engine.blackbox import BoxReading, Phase
from poise.gateway.supervision.life import Watchdog, look_every_s

S = 1_000_000_000


def box(phase: Phase = Phase.RESTING, *, at_s: int = 0, drained_s: float = 0) -> BoxReading:
    return BoxReading(phase, 7, at_s * S, int(drained_s * S))


def looks(watchdog: Watchdog, reading: BoxReading, until_s: int) -> list[str]:
    """What is found, once a second."""
    return [watchdog.look(second * S, reading) for second in range(1, until_s + 1)]


@pytest.mark.parametrize("phase", [Phase.PLANNING, Phase.COMPUTING])
def test_busy_with_one_step_for_too_long_is_a_hang(phase: Phase) -> None:
    """With the step, the time and the limit."""
    found = looks(Watchdog(10, 0), box(phase, at_s=3), 14)
    assert found[:13] == [""] * 13
    assert found[13] == f"it has been {phase} in step 7 for 11.0 s; engine.watchdog_s is 10"


def test_resting_is_no_hang() -> None:
    """An engine without work may do nothing for ever."""
    assert not any(looks(Watchdog(10, 0), box(), 100))


def test_messages_left_alone_are_a_hang() -> None:
    """Also of an engine that says it rests: it was stopped."""
    watchdog = Watchdog(10, 0)
    watchdog.sent(2 * S)
    watchdog.sent(9 * S)
    found = looks(watchdog, box(drained_s=1), 13)
    assert found[:12] == [""] * 12
    assert found[12] == "it has left its messages alone for 11.0 s; engine.watchdog_s is 10"


def test_messages_that_are_taken_are_no_hang() -> None:
    """The time counts from the oldest one that is not known to have been taken."""
    watchdog = Watchdog(10, 0)
    for second in range(1, 50):
        watchdog.sent(second * S)
        assert watchdog.look(second * S + 1, box(drained_s=second - 0.5)) == ""
    assert not any(watchdog.look(second * S, box(drained_s=50)) for second in range(51, 90))


def test_loading_does_not_count() -> None:
    """The box may say of a time before the engine was ready what it likes."""
    assert not any(looks(Watchdog(10, 5 * S), box(Phase.COMPUTING), 15))


def test_who_slept_himself_judges_at_the_next_look() -> None:
    """A suspended machine stops both: the engine gets the time between two looks to show itself."""
    watchdog, reading = Watchdog(10, 0), box(Phase.COMPUTING, at_s=1)
    assert watchdog.look(2 * S, reading) == ""
    assert watchdog.look(500 * S, reading) == ""
    assert watchdog.look(501 * S, reading) != ""


def test_a_short_limit_is_looked_at_often() -> None:
    """At most a quarter of it late."""
    assert (look_every_s(1), look_every_s(600)) == (0.25, 1.0)
