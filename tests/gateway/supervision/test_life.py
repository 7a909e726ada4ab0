"""The phases of the engine, how an engine's end is read, and when the next one is started: tables, without a process."""

from __future__ import annotations

import pytest

from poise.config import Settings
from poise.engine.blackbox import BoxReading, Phase
from poise.gateway.supervision.blame import Cause, Death
from poise.gateway.supervision.engine import EnginePhase
from poise.gateway.supervision.life import STABLE_AFTER_S, Backoff, Life, restart_after
from poise.gateway.supervision.supervisor import Supervisor
from poise.wire.fingerprint import MODEL_CHANGED
from poise.wire.messages import Fatal, Ready

LOADING, READY, RESTARTING, FAILED, STOPPED = EnginePhase


@pytest.mark.parametrize("phase", EnginePhase)
@pytest.mark.parametrize("next_phase", EnginePhase)
def test_phases(phase: EnginePhase, next_phase: EnginePhase) -> None:
    """Nothing leads out of STOPPED."""
    supervisor = Supervisor(Settings(), "model")
    supervisor.state.phase = phase
    supervisor._enter(next_phase)
    assert supervisor.state.phase is (STOPPED if phase is STOPPED else next_phase)


PASS = BoxReading(Phase.COMPUTING, request_ids=(7, 8))
NO_PASS = BoxReading(Phase.PLANNING, request_ids=(7, 8))
BROKEN = Fatal("the model is broken", permanent=True)
SHORT = Fatal("no memory", permanent=True, short_of_memory=True)


@pytest.mark.parametrize(
    ("life", "code", "reading", "expected"),
    [
        (Life(0), -11, PASS, Death(Cause.CRASH, -11, "the engine was killed by SIGSEGV", (7, 8))),
        (Life(0), -11, NO_PASS, Death(Cause.CRASH, -11, "the engine was killed by SIGSEGV")),
        (Life(0), -11, None, Death(Cause.CRASH, -11, "the engine was killed by SIGSEGV")),
        (Life(0), 3, None, Death(Cause.EXIT, 3, "the engine exited with code 3")),
        (Life(0, last_words=BROKEN), 1, None, Death(Cause.EXIT, 1, BROKEN.message, (), True)),
        (Life(0, last_words=SHORT), 1, None, Death(Cause.EXIT, 1, SHORT.message, (), True, True)),
        # What the gateway ended it for comes before what it says and how it ends.
        (Life(0, hang="in a pass"), -9, PASS, Death(Cause.HANG, -9, "the engine hung and was ended: in a pass", (7, 8))),
        (Life(0, hang="x", last_words=BROKEN), 1, None, Death(Cause.HANG, 1, "the engine hung and was ended: x", (), True)),
        (Life(0, is_outdated=True), -9, PASS, Death(Cause.EXIT, 0, MODEL_CHANGED, (), True)),
        (Life(0, hang="x", is_outdated=True), -9, PASS, Death(Cause.EXIT, 0, MODEL_CHANGED, (), True)),
    ],
)
def test_how_an_end_is_read(life: Life, code: int, reading: BoxReading | None, expected: Death) -> None:
    """Exit code, last words, watchdog and model file; and whom the black box names."""
    assert life.death(code, reading) == expected


CRASH, LASTING = Death(Cause.CRASH, -11, "crash"), Death(Cause.EXIT, 1, "broken", is_permanent=True)
NEVER, STABLE, YOUNG = Life(0), Life(0, ready_s=1), Life(0, ready_s=90)
NOW_S, LONGEST_S = 91.0, 4.0


@pytest.mark.parametrize(
    ("life", "death", "n_before", "replaced", "expected"),
    [
        (STABLE, CRASH, 0, False, (0.0, False)),
        (STABLE, CRASH, 5, False, (0.0, False)),
        (YOUNG, CRASH, 0, False, (0.0, False)),
        (YOUNG, CRASH, 1, False, (0.5, False)),
        (YOUNG, CRASH, 9, False, (LONGEST_S, False)),
        (YOUNG, LASTING, 0, False, (LONGEST_S, False)),
        (NEVER, CRASH, 0, False, (0.0, False)),
        (NEVER, CRASH, 2, False, (1.0, False)),
        (NEVER, CRASH, 9, False, (LONGEST_S, True)),
        (NEVER, LASTING, 0, False, (LONGEST_S, True)),
        (YOUNG, CRASH, 9, True, (0.0, False)),
        (NEVER, LASTING, 9, True, (0.0, False)),
    ],
)
def test_when_the_next_one_is_started(
    life: Life, death: Death, n_before: int, replaced: bool, expected: tuple[float, bool]
) -> None:
    """At once after a stable time, else later and later, and as late as ever where nothing will pass soon."""
    backoff = Backoff(LONGEST_S)
    for _ in range(n_before):
        backoff.after(stable=False)
    assert restart_after(life, death, backoff, NOW_S, replaced=replaced) == expected


def test_a_replaced_engine_does_not_count() -> None:
    """The back-off goes on from where it was."""
    backoff = Backoff(LONGEST_S)
    restart_after(NEVER, CRASH, backoff, NOW_S, replaced=False)
    for _ in range(5):
        restart_after(NEVER, CRASH, backoff, NOW_S, replaced=True)
    assert restart_after(NEVER, CRASH, backoff, NOW_S, replaced=False)[0] == 0.5


def test_stable_is_longer_than_the_limit() -> None:
    """And one that never was ready never is."""
    assert not Life(0).is_stable(99)
    assert not Life(0, ready_s=1).is_stable(1 + STABLE_AFTER_S)
    assert Life(0, ready_s=1).is_stable(1.1 + STABLE_AFTER_S)


def test_what_an_engine_says_turns_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor follows the table: last words are for good only before any engine was ready."""
    supervisor = Supervisor(Settings(), "no-such-file.gguf")
    supervisor._dispatch(Fatal("too little memory", permanent=False))
    assert supervisor.state.phase is RESTARTING
    supervisor._dispatch(BROKEN)
    assert (supervisor.state.phase, supervisor.state.detail) == (FAILED, BROKEN.message)
    later = Supervisor(Settings(), "no-such-file.gguf")
    monkeypatch.setattr(later._tasks, "worked", lambda name: None)  # no task was started
    later._dispatch(Ready("toy", 1, 1, 1, [], 1))
    assert (later.state.phase, later.state.ready is not None) == (READY, True)
    later._dispatch(BROKEN)
    assert (later.state.phase, later.state.ready) == (RESTARTING, None)
