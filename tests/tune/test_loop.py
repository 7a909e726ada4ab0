"""The loop with measures whose outcome is decided: what is kept, in which order, and how it ends."""

from __future__ import annotations

from typing import Any

from poise_lab.tune.children import CannotMeasure
from poise_lab.tune.goal import DEFAULT_GUARDS, DEFAULT_TARGET, parse_goal
from poise_lab.tune.knobs import Knob
from poise_lab.tune.loop import Tuner
from tests.tune.fakes import Clock, FakeMeasures, live, passes

THREADS = Knob("engine.threads", "engine", 0, (1, 2), ("short",))
FILL = Knob("scheduler.fill_share", "policy", 0.6, (0.4, 0.8))
TURN = Knob("scheduler.turn_ms", "policy", 2000, (1000, 4000))
KNOBS = [FILL, THREADS, TURN]


def run(minutes: float = 60.0, knobs: list[Knob] | None = None, **answers: Any) -> tuple[Tuner, FakeMeasures]:
    clock = Clock()
    measures = FakeMeasures(clock, **answers)
    goal = parse_goal(DEFAULT_TARGET, DEFAULT_GUARDS)
    tuner = Tuner(measures, goal, clock, 60 * minutes, 1, lambda _: None)
    tuner.run(KNOBS if knobs is None else knobs)
    return tuner, measures


def results(tuner: Tuner) -> list[tuple[str, object, str, str]]:
    return [(trial.key, trial.after, trial.method, trial.result) for trial in tuner.trials]


def test_nothing_is_better() -> None:
    """Every candidate is tried or foretold, nothing is kept, and there is nothing to verify."""
    tuner, measures = run()
    assert results(tuner) == [
        ("engine.threads", 1, "passes", "refused"),
        ("engine.threads", 2, "passes", "refused"),
        ("scheduler.fill_share", 0.4, "simulator", "refused"),
        ("scheduler.fill_share", 0.8, "simulator", "refused"),
        ("scheduler.turn_ms", 1000, "simulator", "refused"),
        ("scheduler.turn_ms", 4000, "simulator", "refused"),
    ]
    assert (tuner.kept, tuner.verification, tuner.ended) == ({}, None, "complete")
    assert all(before == {} for _, before, _ in measures.asked)


def test_one_thing_at_a_time() -> None:
    """What is kept is in force for the next comparison; the simulator is asked again; the untuned is verified against all."""
    tuner, measures = run(
        passed={1: passes(0.7, decode_1_us=0.7)},
        foretold={0.4: 0.9, 1000: 0.7},
        judged={1000: live(ttft=0.8), 0.4: live(ttft=0.9)},
        verified=live(ttft=0.6),
    )
    assert tuner.kept == {"engine.threads": 1, "scheduler.turn_ms": 1000, "scheduler.fill_share": 0.4}
    asked = [(method, before, after) for method, before, after in measures.asked if method != "simulator"]
    one, two = {"engine.threads": 1}, {"engine.threads": 1, "scheduler.turn_ms": 1000}
    assert asked == [
        ("passes", {}, one),
        ("passes", one, {"engine.threads": 2}),
        ("live", one, two),  # the more promising one first
        ("live", two, two | {"scheduler.fill_share": 0.4}),
        ("verify", {}, two | {"scheduler.fill_share": 0.4}),
    ]
    again = [(before, after) for method, before, after in measures.asked if method == "simulator" and before == two]
    assert again == [(two, two | {"scheduler.fill_share": 0.4})]
    assert tuner.verification is not None
    assert tuner.verification.result == "kept"
    assert tuner.accepted == {trial.key: trial.number for trial in tuner.trials if trial.result == "kept"}


def test_every_comparison_has_seeds_of_its_own() -> None:
    """A policy chosen by some requests is not confirmed by the same ones."""
    _, measures = run(foretold={0.4: 0.9}, judged={0.4: live(ttft=0.8)}, verified=live(ttft=0.8))
    by_question = dict(zip(map(str, measures.asked[2:]), measures.seeds, strict=True))
    judged = [seed for question, seed in by_question.items() if "live" in question or "verify" in question]
    assert len(set(judged)) == len(judged) == 2
    assert min(abs(a - b) for a in judged for b in measures.seeds if a != b) >= 1000


def test_noise_and_guardrails_refuse() -> None:
    """A promising candidate that is no better live, and one that is better at somebody's cost."""
    tuner, _ = run(foretold={0.4: 0.8, 1000: 0.9}, judged={0.4: live(ttft=0.5, jobs=0.3), 1000: live(ttft=0.99)})
    assert tuner.kept == {}
    live_trials = [trial for trial in tuner.trials if trial.method == "live"]
    assert [trial.result for trial in live_trials] == ["refused", "refused"]
    assert "background.output_tokens_per_s>=0.90 is violated" in live_trials[0].reason
    assert "no gain beyond noise" in live_trials[1].reason


def test_a_verification_that_fails() -> None:
    """What was kept is told, and that it is not confirmed."""
    tuner, _ = run(foretold={0.4: 0.8}, judged={0.4: live(ttft=0.8)}, verified=live(ttft=1.0))
    assert tuner.kept == {"scheduler.fill_share": 0.4}
    assert tuner.verification is not None
    assert tuner.verification.result == "refused"


def test_the_time_is_over() -> None:
    """No trial starts that would leave no time for the verification, and what was kept is verified in what is left."""
    tuner, measures = run(minutes=2.0, passed={1: passes(0.7, decode_1_us=0.7)}, verified=live(ttft=0.8))
    assert results(tuner) == [("engine.threads", 1, "passes", "kept"), ("engine.threads", 2, "passes", "refused")]
    assert tuner.ended == "time"
    assert measures.asked[-1][0] == "verify"
    tuner, measures = run(minutes=1.0)
    assert (tuner.trials, measures.asked, tuner.ended) == ([], [], "time")


def test_an_interrupted_run() -> None:
    """What was found until then stands, the trial that was cut is named, and nothing is measured any more."""
    tuner, measures = run(passed={1: passes(0.7, decode_1_us=0.7)}, foretold={0.4: 0.8}, judged={0.4: KeyboardInterrupt()})
    assert tuner.kept == {"engine.threads": 1}
    assert tuner.trials[-1].result == "interrupted"
    assert (tuner.ended, tuner.verification) == ("interrupted", None)
    assert measures.asked[-1][0] == "live"
    tuner, _ = run(passed={1: passes(0.7, decode_1_us=0.7)}, verified=KeyboardInterrupt())
    assert (tuner.ended, tuner.verification, tuner.kept) == ("interrupted", None, {"engine.threads": 1})


def test_what_cannot_be_measured_is_skipped() -> None:
    """A server that does not start is a reason, and the next candidate is tried; so is a verification that cannot be made."""
    tuner, _ = run(passed={1: CannotMeasure("no memory"), 2: passes(0.7, decode_1_us=0.7)}, verified=CannotMeasure("x"))
    assert [(trial.result, trial.reason) for trial in tuner.trials[:1]] == [("skipped", "no memory")]
    assert tuner.kept == {"engine.threads": 2}
    assert tuner.verification is not None
    assert (tuner.verification.result, tuner.verification.reason) == ("failed", "x")


def test_the_order_is_the_same_every_time() -> None:
    """Equal predictions are tried in the order of the knobs."""
    runs = [run(foretold={0.4: 0.8, 0.8: 0.8, 1000: 0.8, 4000: 0.8}) for _ in range(2)]
    orders = [[trial.after for trial in tuner.trials if trial.method == "live"] for tuner, _ in runs]
    assert orders[0] == orders[1] == [0.4, 0.8, 1000, 4000]
