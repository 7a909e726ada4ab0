"""The watchdog: what is a hang, what is not."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from poise.gateway.watchdog import Watchdog

S = 1_000_000_000


@dataclass
class Box:
    phase: str = "resting"
    step: int = 7
    at_ns: int = 0
    drained_ns: int = 0


def looks(watchdog: Watchdog, box: Box, until_s: int) -> list[str]:
    """What is found, once a second."""
    return [watchdog.look(second * S, box) for second in range(1, until_s + 1)]


@pytest.mark.parametrize("phase", ["planning", "computing"])
def test_busy_with_one_step_for_too_long_is_a_hang(phase: str) -> None:
    """With the step, the time and the limit."""
    found = looks(Watchdog(10, 0), Box(phase, at_ns=3 * S), 14)
    assert found[:13] == [""] * 13
    assert found[13] == f"it has been {phase} in step 7 for 11.0 s; engine.watchdog_s is 10"


def test_resting_is_no_hang() -> None:
    """An engine without work may do nothing for ever."""
    assert not any(looks(Watchdog(10, 0), Box(), 100))


def test_messages_left_alone_are_a_hang() -> None:
    """Also of an engine that says it rests: it was stopped."""
    watchdog = Watchdog(10, 0)
    watchdog.sent(2 * S)
    watchdog.sent(9 * S)
    found = looks(watchdog, Box(drained_ns=1 * S), 13)
    assert found[:12] == [""] * 12
    assert found[12] == "it has left its messages alone for 11.0 s; engine.watchdog_s is 10"


def test_messages_that_are_taken_are_no_hang() -> None:
    """The time counts from the oldest one that is not known to have been taken."""
    watchdog, box = Watchdog(10, 0), Box()
    for second in range(1, 50):
        watchdog.sent(second * S)
        box.drained_ns = second * S - S // 2
        assert watchdog.look(second * S + 1, box) == ""
    box.drained_ns = 50 * S
    assert not any(watchdog.look(second * S, box) for second in range(51, 90))


def test_loading_does_not_count() -> None:
    """The box may say of a time before the engine was ready what it likes."""
    assert not any(looks(Watchdog(10, 5 * S), Box("computing", at_ns=0), 15))


def test_who_slept_himself_judges_at_the_next_look() -> None:
    """A suspended machine stops both: the engine gets the time between two looks to show itself."""
    watchdog, box = Watchdog(10, 0), Box("computing", at_ns=1 * S)
    assert watchdog.look(2 * S, box) == ""
    assert watchdog.look(500 * S, box) == ""
    assert watchdog.look(501 * S, box) != ""


def test_a_short_limit_is_looked_at_often() -> None:
    """At most a quarter of it late."""
    assert (Watchdog(1, 0).interval_s, Watchdog(600, 0).interval_s) == (0.25, 1.0)
