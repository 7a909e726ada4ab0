"""The tuning loop: one change at a time, kept only when it is measured to be better; then all of it against the untuned settings.

1. Engine knobs come first, each candidate against the settings in force, judged by forward passes.
2. Policy knobs: the simulator foretells all candidates; what it finds worse or no better is dropped. The rest goes to the live
   judge, the most promising first. After a change that was kept, the simulator is asked again, against the new settings.
3. What is kept is in force for everything that comes after it. Every comparison has seeds of its own.
4. At the end the untuned settings run against all that was kept, on new seeds. Its time is set aside from the beginning: no
   trial starts that would leave too little.
5. When the time is over or Ctrl-C comes, what was found so far stands, and is not verified.

`--check`: does every value of a tuned file still hold? Each is left out in turn and held against the whole file. A value holds
when the comparison that it was kept by (passes or live servers) comes out the same way again, beyond noise. With the evidence at
hand, target, guardrails, scenario and rounds are those of then, and what has changed since (host, model, versions) is reported.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from poise_lab.tune.children import CannotMeasure
from poise_lab.tune.evidence import Ended, Method, Result, Trial
from poise_lab.tune.goal import Goal, Hopeless, Measured, Verdict, gain, pass_goal
from poise_lab.tune.knobs import STAGES, Changes, Knob, Value, pools_of, stage_of

SEEDS_APART = 1000
"""Between the first seeds of two comparisons; more than a comparison has rounds."""


class Measures(Protocol):
    """How candidates are measured. `until` is a moment of the loop's clock; each may raise CannotMeasure."""

    def cost_s(self, method: Method, knob: Knob | None) -> float:
        """What a comparison will take; without a knob, the verification."""

    def passes(self, before: Changes, after: Changes, knob: Knob, until: float) -> Measured: ...

    def forecast(self, before: Changes, after: Changes, seed: int) -> Measured: ...

    def live(self, before: Changes, after: Changes, seed: int, hopeless: Hopeless, until: float) -> Measured: ...


Measure = Callable[[], Measured]
Judge = Callable[[Measured], Verdict]


class _TimeOver(Exception):
    pass


@dataclass(slots=True)
class Tuner:
    """Runs once. `trials`, `kept` and `ended` are valid at any time, also after an exception."""

    measures: Measures
    goal: Goal
    clock: Callable[[], float]
    until: float
    seed: int
    say: Callable[[str], None]
    trials: list[Trial] = field(default_factory=list)
    kept: Changes = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    verification: Trial | None = None
    ended: Ended = "complete"
    _n_comparisons: int = 0

    def run(self, found: Sequence[Knob]) -> None:
        """Tries the knobs, then verifies what was kept."""
        try:
            for knob in [knob for knob in found if knob.stage == "engine"]:
                self._try_engine(knob)
            self._try_policy([knob for knob in found if knob.stage == "policy"])
        except _TimeOver:
            self.ended = "time"
        except KeyboardInterrupt:
            self.ended = "interrupted"
            return
        try:
            self._verify()
        except KeyboardInterrupt:
            self.ended = "interrupted"

    def _try_engine(self, knob: Knob) -> None:
        for value in knob.candidates:
            self._check_time("passes", knob)
            before, until = dict(self.kept), self._reserved_until()
            measure = partial(self.measures.passes, before, before | {knob.key: value}, knob, until)
            self._compare(knob, value, "passes", measure, judge_passes)

    def _try_policy(self, found: Sequence[Knob]) -> None:
        candidates = [(knob, value) for knob in found for value in knob.candidates]
        while candidates:
            promising = self._foretell(candidates)
            if not promising:
                return
            candidates = []
            for place, (knob, value) in enumerate(promising):
                self._check_time("live", knob)
                before, after, until = dict(self.kept), self.kept | {knob.key: value}, self._reserved_until()
                measure = partial(self.measures.live, before, after, self._new_seed(), self.goal.is_hopeless, until)
                if self._compare(knob, value, "live", measure, self.goal.judge).result == "kept":
                    rest = promising[place + 1 :]
                    # Another value of the same setting is foretold against the one that was kept.
                    candidates = [(other, candidate) for other, candidate in rest if candidate != self._current(other)]
                    break

    def _foretell(self, candidates: Sequence[tuple[Knob, Value]]) -> list[tuple[Knob, Value]]:
        """Those worth a live comparison, best first; equal ones in the order of the knobs."""
        found: list[tuple[float, int, Knob, Value]] = []
        seed = self._new_seed()
        for place, (knob, value) in enumerate(candidates):
            self._check_time("simulator", knob)
            measure = partial(self.measures.forecast, dict(self.kept), self.kept | {knob.key: value}, seed)
            trial = self._compare(knob, value, "simulator", measure, partial(self.goal.judge, predicted=True))
            if trial.result == "promising" and trial.target is not None:
                found.append((-gain(trial.target), place, knob, value))
        return [(knob, value) for _, _, knob, value in sorted(found, key=lambda entry: entry[:2])]

    def _verify(self) -> None:
        """All that was kept against the untuned settings. It is never cut short: its figures are what the file tells."""
        if not self.kept:
            return
        measure = partial(self.measures.live, {}, dict(self.kept), self._new_seed(), lambda _: False, float("inf"))
        self.verification = carry_out(self._number, "", ("", ""), "live", measure, self.goal.judge, self.clock)
        self.say(self.verification.line())

    def _compare(self, knob: Knob, value: Value, method: Method, measure: Measure, judge: Judge) -> Trial:
        """One trial, noted and printed. What passes it is in force from then on, unless it is only a prediction."""
        began, values = self.clock(), (self._current(knob), value)
        try:
            trial = carry_out(self._number, knob.key, values, method, measure, judge, self.clock)
        except KeyboardInterrupt:
            took_s = round(self.clock() - began, 1)
            self._note(Trial(self._number, knob.key, *values, method, "interrupted", "Ctrl-C", took_s=took_s))
            raise
        self._note(trial)
        if trial.result == "kept":
            self.kept[knob.key] = value
            self.accepted[knob.key] = trial.number
        return trial

    def _note(self, trial: Trial) -> None:
        self.trials.append(trial)
        self.say(trial.line())

    @property
    def _number(self) -> int:
        """Of the next trial."""
        return len(self.trials) + 1

    def _current(self, knob: Knob) -> Value:
        return self.kept.get(knob.key, knob.current)

    def _check_time(self, method: Method, knob: Knob) -> None:
        if self.clock() + self.measures.cost_s(method, knob) > self._reserved_until():
            raise _TimeOver

    def _reserved_until(self) -> float:
        """The end of the time less the verification's part."""
        return self.until - self.measures.cost_s("live", None)

    def _new_seed(self) -> int:
        self._n_comparisons += 1
        return self.seed + SEEDS_APART * self._n_comparisons


def carry_out(
    number: int, key: str, values: tuple[Value, Value], method: Method, measure: Measure, judge: Judge, clock: Callable[[], float]
) -> Trial:
    """What is measured and what is said of it. A KeyboardInterrupt ends it."""
    began, measured = clock(), Measured(())
    try:
        measured = measure()
        verdict = judge(measured)
        result: Result = "refused" if not verdict.kept else "promising" if method == "simulator" else "kept"
    except CannotMeasure as error:
        verdict, result = Verdict(False, str(error), None), "skipped" if key else "failed"
    judged = (number, key, *values, method, result, verdict.reason, verdict.target, verdict.guards)
    return Trial(*judged, measured.seeds, measured.failed, round(clock() - began, 1), tuple(measured.estimates))


def judge_passes(measured: Measured) -> Verdict:
    """The first of the figures is the mean of all passes, the others are the passes."""
    return pass_goal([estimate.figure for estimate in measured.estimates[1:]]).judge(measured)


def in_order(found: Sequence[Knob]) -> Iterator[tuple[Knob, Value]]:
    """Every candidate, as the plan lists them."""
    for knob in sorted(found, key=lambda knob: STAGES.index(knob.stage)):
        yield from ((knob, value) for value in knob.candidates)


HOLDS, NO_LONGER = 0, 1


def unknown_keys(values: Changes) -> list[str]:
    """Settings of a file that tuning knows nothing of."""
    return [key for key in values if stage_of(key) is None]


def check_values(
    values: Changes, measures: Measures, goal: Goal, seed: int, clock: Callable[[], float], say: Callable[[str], None]
) -> list[Trial]:
    """Each value against the file without it, in the file's order. A KeyboardInterrupt ends it; what was reported stands."""
    found = []
    for number, (key, value) in enumerate(values.items()):
        without = {other: known for other, known in values.items() if other != key}
        if stage_of(key) == "engine":
            knob = Knob(key, "engine", value, (value,), pools_of(key))
            passes = partial(measures.passes, without, values, knob, float("inf"))
            trial = carry_out(number, key, (value, value), "passes", passes, judge_passes, clock)
        else:
            own_seed = seed + SEEDS_APART * number
            live = partial(measures.live, without, values, own_seed, goal.is_hopeless, float("inf"))
            trial = carry_out(number, key, (value, value), "live", live, goal.judge, clock)
        word = "holds" if trial.result == "kept" else "no longer"
        say(f"{key} = {value}: {word}: {trial.reason}  ({trial.took_s:.0f} s)")
        found.append(trial)
    return found
