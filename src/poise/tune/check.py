"""`poise tune --check`: does every value of a tuned file still hold? Each is left out in turn and held against the whole file.

A value holds when the comparison that it was kept by (passes or live servers) comes out the same way again, beyond noise. With
the evidence at hand, target, guardrails, scenario and rounds are those of then, and what has changed since (host, model,
versions) is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from poise.tune.children import CannotMeasure
from poise.tune.goal import Goal, Measured, Verdict
from poise.tune.knobs import Changes, Knob, Value, pools_of, stage_of
from poise.tune.loop import SEEDS_APART, Measures, judge_passes

HOLDS, NO_LONGER = 0, 1


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one value."""

    key: str
    value: Value
    verdict: Verdict
    took_s: float

    def line(self) -> str:
        word = "holds" if self.verdict.kept else "no longer"
        return f"{self.key} = {self.value}: {word}: {self.verdict.reason}  ({self.took_s:.0f} s)"


def unknown_keys(values: Changes) -> list[str]:
    """Settings of a file that tuning knows nothing of."""
    return [key for key in values if stage_of(key) is None]


def check_values(
    values: Changes,
    measures: Measures,
    goal: Goal,
    seed: int,
    clock: Callable[[], float],
    say: Callable[[str], None],
) -> list[Check]:
    """In the order of the file. A KeyboardInterrupt ends it; what was reported until then stands."""
    found = []
    for number, (key, value) in enumerate(values.items()):
        without = {other: known for other, known in values.items() if other != key}
        began = clock()
        try:
            if stage_of(key) == "engine":
                knob = Knob(key, "engine", value, (value,), pools_of(key))
                verdict = judge_passes(measures.passes(without, values, knob, float("inf")))
            else:
                measured: Measured = measures.live(
                    without, values, seed + SEEDS_APART * number, goal.is_hopeless, float("inf")
                )
                verdict = goal.judge(measured)
        except CannotMeasure as error:
            verdict = Verdict(False, str(error), None)
        found.append(Check(key, value, verdict, clock() - began))
        say(found[-1].line())
    return found
