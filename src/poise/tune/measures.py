"""The real measures of the tuning loop: the child that times passes, the simulator, and two live servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from poise.bench.rounds import ScenarioSource
from poise.config import LoadedSettings
from poise.scenarios.model import Scenario
from poise.tune.evidence import Method
from poise.tune.forecast import SEEDS, SIM_SPEED, Forecast, sim_options
from poise.tune.goal import Hopeless, Measured
from poise.tune.judge import LiveJudge
from poise.tune.knobs import Changes, Knob
from poise.tune.loop import in_order
from poise.tune.timing import PassJudge

CALIBRATION_SEED = 500
"""Added to the first seed: no comparison has it."""
DRAIN_SHARE = 0.5
"""Of a round's length: what is then in flight and not done is cut, and counts as having waited so long."""


@dataclass(slots=True)
class HostMeasures:
    """See `poise.tune.loop.Measures`."""

    loaded: LoadedSettings
    source: ScenarioSource
    passes_judge: PassJudge
    live_judge: LiveJudge
    seed: int
    say: Callable[[str], None]
    _forecast: Forecast | None = None

    def cost_s(self, method: Method, knob: Knob | None) -> float:
        if method == "passes":
            return self.passes_judge.cost_s(knob.pools if knob is not None else ())
        if method == "live":
            return self.live_judge.cost_s()
        calibration_s = self.live_judge.cost_s(rounds=1) / 2 if self._forecast is None else 0.0
        return calibration_s + 2 * SEEDS * self.source.scenario.duration_s / SIM_SPEED

    def passes(self, before: Changes, after: Changes, knob: Knob, until: float) -> Measured:
        return self.passes_judge.compare(before, after, knob.key, knob.pools, until)

    def forecast(self, before: Changes, after: Changes, seed: int) -> Measured:
        """The simulator learns this host's costs from one round with the settings in force, when it is first asked."""
        if self._forecast is None:
            found, template = self.live_judge.calibrate(before, self.seed + CALIBRATION_SEED)
            self._forecast = Forecast(self.loaded, self.source.scenario, sim_options(found, template))
            fits = ", ".join(
                f"{name}: {fit.n_batches} batches, off by {fit.error_p50:.0%}" for name, fit in found.pools.items()
            )
            self.say(f"     simulator calibrated from one live round ({fits})")
        return self._forecast.compare(before, after, seed)

    def live(self, before: Changes, after: Changes, seed: int, hopeless: Hopeless, until: float) -> Measured:
        return self.live_judge.compare(before, after, seed, hopeless, until)


@contextmanager
def host_measures(
    loaded: LoadedSettings, source: ScenarioSource, rounds: int, seed: int, say: Callable[[str], None]
) -> Iterator[HostMeasures]:
    """Everything that was started is ended when this is left, however."""
    with TemporaryDirectory(prefix="poise-tune-") as folder:
        live = LiveJudge(loaded, source, Path(folder), rounds)
        try:
            yield HostMeasures(loaded, source, PassJudge(loaded, rounds), live, seed, say)
        finally:
            live.close()


def shortened(scenario: Scenario, round_s: float) -> Scenario:
    """Its first `round_s` seconds, with a drain in proportion."""
    duration_s = min(scenario.duration_s, round_s)
    return replace(scenario, duration_s=duration_s, drain_s=min(scenario.drain_s, DRAIN_SHARE * duration_s))


def plan_text(found: Sequence[Knob], measures: HostMeasures, budget_s: float, header: str) -> str:
    """What will be tried in which order, and how long each takes."""
    lines = [header, ""]
    total_s, policy = 0.0, [knob for knob in found if knob.stage == "policy"]
    for number, (knob, value) in enumerate(in_order(found), 1):
        method: Method = "passes" if knob.stage == "engine" else "simulator"
        cost_s = measures.cost_s(method, knob)
        if method == "simulator":
            cost_s = SEEDS * measures.source.scenario.duration_s / SIM_SPEED
        total_s += cost_s
        lines.append(f"{number:>3}  {method:<9}  {knob.key} {knob.current} -> {value}  (about {cost_s:.0f} s)")
    live_s = measures.cost_s("live", None)
    if policy:
        calibration_s = measures.live_judge.cost_s(rounds=1) / 2
        total_s += calibration_s
        lines += [
            "",
            f"Before the simulator: one live round to learn this host's costs (about {calibration_s:.0f} s).",
            f"What it finds promising goes to live servers, best first: about {live_s:.0f} s each.",
        ]
    lines += [
        f"At the end: untuned against all that was kept, on new seeds (about {live_s:.0f} s).",
        f"Budget {budget_s / 60:g} min; without live comparisons about {(total_s + live_s) / 60:.0f} min. "
        "When it is over, what was found is written.",
    ]
    return "\n".join(lines)
