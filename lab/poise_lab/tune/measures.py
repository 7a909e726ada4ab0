"""The real measures of the tuning loop: the child that times passes, the simulator, and two live servers (`tune.judge`).

Engine knobs: the rounds of the child are read, and the figures of a comparison made of them.

The filter: the simulator runs a candidate beside the settings in force, over several seeds. Costs come from the flight recorder
of a live server under the chosen scenario (`poise_lab.sim.calibrate`). The figures have the names and the cut of the benchmark's,
so that the same goal judges both. A prediction never accepts anything: it says what is worth trying."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from poise.config import LoadedSettings, engine_settings
from poise.scheduler.policy import CostPrior
from poise_lab.bench.comparison import Estimate, compare, estimate
from poise_lab.bench.record import Figure
from poise_lab.bench.rounds import OURS, THEIRS, ScenarioSource
from poise_lab.scenarios.model import Scenario
from poise_lab.sim.calibrate import Calibration
from poise_lab.sim.costs import WAY_US, Costs
from poise_lab.sim.report import group_figures
from poise_lab.sim.simulate import Options, SimulationFailure, simulate
from poise_lab.sim.world import TemplateTokens
from poise_lab.tune.children import CannotMeasure, end_process, start_passes
from poise_lab.tune.evidence import Method
from poise_lab.tune.goal import STEP, Hopeless, Measured
from poise_lab.tune.judge import LiveJudge
from poise_lab.tune.knobs import KV_KNOB, Changes, Knob
from poise_lab.tune.loop import in_order
from poise_lab.tune.passes import Line, Order

START_S = 8.0
ROUND_S = 1.5
ROUND_LONG_S = 4.0

Times = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PassJudge:
    """Compares two builds of the engine by their passes, each round a pair."""

    loaded: LoadedSettings
    rounds: int

    def cost_s(self, pools: Sequence[str]) -> float:
        """What a comparison will take with a small model; a round of the long pool costs most."""
        return START_S + self.rounds * (ROUND_LONG_S if "long" in pools else ROUND_S)

    def compare(self, before: Changes, after: Changes, key: str, pools: tuple[str, ...], until: float = float("inf")) -> Measured:
        """Raises CannotMeasure."""
        one, other = (engine_settings(self.loaded.varied(changes).settings) for changes in (before, after))
        order = Order(one, other, pools, self.rounds, quality=key == KV_KNOB)
        child = start_passes()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(msgspec.json.encode(order))
            child.stdin.close()
            return self._read(child.stdout, until)
        finally:
            end_process(child)

    def _read(self, lines: Iterable[bytes], until: float) -> Measured:
        rounds: list[Times] = []
        problem = stopped = ""
        for text in lines:
            try:
                line = msgspec.json.decode(text, type=Line)
            except msgspec.DecodeError:
                break  # it died in the middle of a line
            if line.same:
                raise CannotMeasure("it builds the same engine: what is measured at a start has chosen it already")
            problem = line.problem or problem
            if line.times:
                rounds.append(line.times)
            if time.monotonic() > until:
                stopped = "the time was over"
                break
        if problem and not rounds:
            raise CannotMeasure(problem)
        if not rounds:
            raise CannotMeasure("the process that times passes ended without a figure")
        if not stopped and len(rounds) < self.rounds:
            problem = problem or "the process that times passes ended early"
        return Measured(pass_estimates(rounds), problem=problem, stopped=stopped)


def pass_estimates(rounds: Sequence[Times]) -> list[Estimate]:
    """The geometric mean of all passes, and each of them."""
    names = list(rounds[0])
    whole = [
        (Figure(_mean([times[name][0] for name in names])), Figure(_mean([times[name][1] for name in names]))) for times in rounds
    ]
    each = {name: [(Figure(times[name][0]), Figure(times[name][1])) for times in rounds] for name in names}
    return [estimate(("all", "", name), pairs) for name, pairs in ({STEP: whole} | each).items()]


def _mean(values: Sequence[float]) -> float:
    return float(prod(values) ** (1 / len(values)))


SEEDS = 6
SIM_SPEED = 15.0
"""Seconds of load that a second of simulation takes, at the least."""


@dataclass(slots=True)
class Forecast:
    """The simulator with this host's costs. Rounds of the settings in force are run once for each seed."""

    loaded: LoadedSettings
    scenario: Scenario
    options: Options
    _known: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def compare(self, before: Changes, after: Changes, seed: int) -> Measured:
        """Raises CannotMeasure when a simulated server breaks."""
        rounds = [
            {"seed": s, "sides": {THEIRS: self._side(before, s), OURS: self._side(after, s)}} for s in range(seed, seed + SEEDS)
        ]
        estimates, _ = compare(rounds, THEIRS, rounds, OURS)
        return Measured(estimates, tuple(range(seed, seed + SEEDS)))

    def _side(self, changes: Changes, seed: int) -> dict[str, Any]:
        key = (repr(sorted(changes.items())), seed)
        if key not in self._known:
            try:
                done = simulate(self.scenario, self.loaded.varied(changes).settings, seed, self.options)
            except SimulationFailure as error:
                raise CannotMeasure(f"the simulation ends with {error.__cause__!r}") from error
            self._known[key] = {"groups": group_figures(self.scenario, done.records)}
        return self._known[key]


def sim_options(found: Calibration, template: TemplateTokens) -> Options:
    """A simulation with costs as a cost file of the calibration would give them, known to its scheduler from the start."""
    priors = {name: CostPrior(*fit.weights) for name, fit in found.pools.items()}
    noise = {name: fit.noise for name, fit in found.pools.items()}
    costs = Costs.of(priors, noise, found.step_us, found.row_us, found.carry_us_per_cell, WAY_US)
    return Options(costs, costs.pools, template=template)


CALIBRATION_SEED = 500
"""Added to the first seed: no comparison has it."""
DRAIN_SHARE = 0.5
"""Of a round's length: what is then in flight and not done is cut, and counts as having waited so long."""


@dataclass(slots=True)
class HostMeasures:
    """See `poise_lab.tune.loop.Measures`."""

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
            fits = ", ".join(f"{name}: {fit.n_batches} batches, off by {fit.error_p50:.0%}" for name, fit in found.pools.items())
            self.say(f"     simulator calibrated from one live round ({fits})")
        return self._forecast.compare(before, after, seed)

    def live(self, before: Changes, after: Changes, seed: int, hopeless: Hopeless, until: float) -> Measured:
        return self.live_judge.compare(before, after, seed, hopeless, until)


@contextmanager
def host_measures(
    loaded: LoadedSettings, source: ScenarioSource, rounds: int, seed: int, say: Callable[[str], None]
) -> Iterator[HostMeasures]:
    """Everything that was started is ended when this is left, however."""
    with TemporaryDirectory(prefix="poise-tune-") as folder, closing(LiveJudge(loaded, source, Path(folder), rounds)) as live:
        yield HostMeasures(loaded, source, PassJudge(loaded, rounds), live, seed, say)


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
        simulated_s = SEEDS * measures.source.scenario.duration_s / SIM_SPEED
        cost_s = measures.cost_s(method, knob) if method == "passes" else simulated_s
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
