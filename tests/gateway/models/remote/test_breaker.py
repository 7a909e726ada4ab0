"""A server that fails is left alone, tried with one request, and trusted again; a wrong key is an operator's business."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.models.remote.breaker import FAILURES, FAILURES_S, OUTCOMES, PAUSE_MAX_S, PAUSE_S, Breaker, Pass, State


def fail(breaker: Breaker, now_s: float, **said: int | float) -> None:
    passed = breaker.take(now_s)
    assert passed is not None
    breaker.failed(passed, now_s, **said)  # type: ignore[arg-type]


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES):
        fail(breaker, at_s)
    return breaker


def test_five_failures_within_half_a_minute_open_it() -> None:
    """Not one fewer, and not over a longer time."""
    breaker = Breaker()
    for i in range(FAILURES - 1):
        fail(breaker, i * FAILURES_S / (FAILURES - 1))
    assert breaker.state(FAILURES_S) is State.CLOSED
    fail(breaker, FAILURES_S)
    assert breaker.state(FAILURES_S) is State.OPEN
    assert breaker.take(FAILURES_S) is None
    assert breaker.wait_s(FAILURES_S) == PAUSE_S
    slow = Breaker()
    for i in range(FAILURES):
        fail(slow, i * FAILURES_S)
    assert slow.state(FAILURES * FAILURES_S) is State.CLOSED


def test_half_of_the_last_twenty_open_it() -> None:
    """However slowly they come."""
    breaker = Breaker()
    for i in range(OUTCOMES):
        assert breaker.state(i * 100.0) is State.CLOSED
        passed = breaker.take(i * 100.0)
        assert passed is not None
        if i % 2:
            breaker.failed(passed, i * 100.0)
        else:
            breaker.succeeded(passed)
    assert breaker.state((OUTCOMES - 1) * 100.0) is State.OPEN


def test_one_probe_decides() -> None:
    """Only one passes; it opens it for twice as long, or closes it. One that gives up leaves the probe to the next."""
    breaker = opened()
    now_s = PAUSE_S
    assert breaker.state(now_s) is State.HALF_OPEN
    probe = breaker.take(now_s)
    assert probe == Pass(is_probe=True)
    assert breaker.take(now_s) is None
    breaker.gave_up(probe)
    probe = breaker.take(now_s)
    assert probe is not None
    breaker.failed(probe, now_s)
    assert breaker.wait_s(now_s) == 2 * PAUSE_S
    now_s += 2 * PAUSE_S
    probe = breaker.take(now_s)
    assert probe is not None
    breaker.succeeded(probe)
    assert breaker.state(now_s) is State.CLOSED
    fail(breaker, now_s)
    assert breaker.state(now_s) is State.CLOSED


def test_pauses_have_a_bound() -> None:
    breaker, now_s = opened(), 0.0
    for _ in range(10):
        wait_s = breaker.wait_s(now_s)
        assert wait_s is not None
        assert wait_s <= PAUSE_MAX_S
        now_s += wait_s
        fail(breaker, now_s)
    assert breaker.wait_s(now_s) == PAUSE_MAX_S


def test_what_was_sent_before_says_nothing_of_the_probe() -> None:
    """Late answers neither close it, nor end the probe, nor make the pause longer."""
    breaker = Breaker()
    late = [breaker.take(0.0) for _ in range(3)]
    for _ in range(FAILURES):
        fail(breaker, 0.0)
    assert all(late)
    breaker.succeeded(late[0] or Pass(False))
    assert breaker.state(1.0) is State.OPEN
    probe = breaker.take(PAUSE_S)
    breaker.gave_up(late[1] or Pass(False))
    breaker.failed(late[2] or Pass(False), PAUSE_S)
    assert probe is not None
    assert breaker.take(PAUSE_S) is None
    assert breaker.wait_s(PAUSE_S) == 0.0


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_for_an_operator(status: int) -> None:
    """No time mends it."""
    breaker = Breaker()
    fail(breaker, 0.0, status=status)
    assert (breaker.state(1e9), breaker.take(1e9), breaker.wait_s(1e9), breaker.locked_by) == (State.OPEN, None, None, status)
    breaker.reset()
    assert breaker.take(1e9) == Pass(is_probe=False)


def test_what_a_server_asks_for_is_kept_to() -> None:
    """Retry-After, also of the first failure, and beyond the breaker's own pause."""
    breaker = Breaker()
    fail(breaker, 0.0, status=429, retry_after_s=7.0)
    assert breaker.take(6.9) is None
    assert breaker.wait_s(2.0) == 5.0
    assert breaker.state(7.0) is State.CLOSED
    breaker = opened()
    probe = breaker.take(PAUSE_S)
    assert probe is not None
    breaker.failed(probe, PAUSE_S, retry_after_s=1000.0)
    assert breaker.wait_s(PAUSE_S) == 1000.0


@given(st.lists(st.tuples(st.floats(0, 40), st.sampled_from(["take", "ok", "bad", "leave", "reset"])), max_size=60))
def test_it_never_locks_up(steps: list[tuple[float, str]]) -> None:
    """Whatever happens, it lets one through again once everybody is done and its pause is over; and never two while it probes."""
    breaker, now_s, out = Breaker(), 0.0, list[Pass]()
    for later_s, what in steps:
        now_s += later_s
        if what == "take":
            passed = breaker.take(now_s)
            out += [passed] if passed else []
        elif what == "reset":
            breaker.reset()
        elif out:
            passed = out.pop(0)
            if what == "ok":
                breaker.succeeded(passed)
            elif what == "bad":
                breaker.failed(passed, now_s)
            else:
                breaker.gave_up(passed)
    for passed in out:
        breaker.gave_up(passed)
    wait_s = breaker.wait_s(now_s)
    assert wait_s is not None
    assert wait_s <= PAUSE_MAX_S
    assert breaker.take(now_s + wait_s) is not None
