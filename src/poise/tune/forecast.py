"""The filter: the simulator runs a candidate beside the settings in force, with this host's costs, over several seeds.

Costs come from the flight recorder of a live server under the chosen scenario (`poise.sim.calibrate`). The figures have the
names and the cut of the benchmark's, so that the same goal judges both. A prediction never accepts anything: it says what is
worth trying.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from poise.bench.comparison import compare
from poise.bench.rounds import OURS, THEIRS
from poise.config import LoadedSettings
from poise.scenarios.model import Scenario
from poise.scheduler.policy import CostPrior
from poise.sim.calibrate import Calibration
from poise.sim.costs import WAY_US, Costs
from poise.sim.report import group_figures
from poise.sim.simulate import Options, SimulationFailure, simulate
from poise.sim.template import TemplateTokens
from poise.tune.children import CannotMeasure
from poise.tune.goal import Measured
from poise.tune.knobs import Changes

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
            {"seed": s, "sides": {THEIRS: self._side(before, s), OURS: self._side(after, s)}}
            for s in range(seed, seed + SEEDS)
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
