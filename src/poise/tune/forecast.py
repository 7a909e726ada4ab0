"""The filter: the simulator runs a candidate beside the settings in force, with this host's costs, over several seeds.

Costs come from the flight recorder of a live server under the chosen scenario (`poise.sim.calibrate`). The figures have the
names and the cut of the benchmark's, so that the same goal judges both. A prediction never accepts anything: it says what is
worth trying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.bench.comparison import compare
from poise.bench.rounds import OURS, THEIRS
from poise.config import LoadedSettings
from poise.scenarios import Scenario
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, CostPrior
from poise.sim.calibrate import Calibration
from poise.sim.costs import WAY_US, Costs
from poise.sim.report import token_times_ns
from poise.sim.simulate import Options, SimulationFailure, simulate
from poise.sim.template import TemplateTokens
from poise.sim.world import RequestResult
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
    _known: dict[tuple[str, int], dict[str, Any]]

    @classmethod
    def calibrated(
        cls, loaded: LoadedSettings, scenario: Scenario, found: Calibration, template: TemplateTokens
    ) -> Forecast:
        costs = as_costs(found)
        return cls(loaded, scenario, Options(costs, costs.pools, template=template), {})

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


def as_costs(found: Calibration) -> Costs:
    """As a cost file would be read: a pool that the load never used costs what the other one does."""
    priors = {name: CostPrior(*fit.weights) for name, fit in found.pools.items()}
    known = next(iter(priors.values()))
    return Costs(
        {name: priors.get(name, known) for name in (SHORT_POOL, LONG_POOL)},
        {name: fit.noise for name, fit in found.pools.items()},
        found.step_us,
        found.row_us,
        found.carry_us_per_cell,
        WAY_US,
    )


def group_figures(scenario: Scenario, records: Sequence[RequestResult]) -> list[dict[str, Any]]:
    """The figures that the benchmark would have of all clients, each class, each tenant and each client."""
    groups: list[tuple[str, str, Sequence[RequestResult]]] = [("all", "", records)]
    for kind, attribute in (("class", "request_class"), ("tenant", "tenant"), ("client", "client")):
        names = dict.fromkeys(str(getattr(record, attribute)) for record in records)
        groups += [(kind, name, [r for r in records if str(getattr(r, attribute)) == name]) for name in names]
    return [
        {"kind": kind, "name": name, "statuses": {}, "figures": _figures(scenario, own)} for kind, name, own in groups
    ]


def _figures(scenario: Scenario, records: Sequence[RequestResult]) -> dict[str, dict[str, Any]]:
    """A request that is cut has waited at least until then."""
    window_ns = round(scenario.duration_s * 1e9)
    cut_ns = window_ns + round(scenario.drain_s * 1e9)
    found: dict[str, float] = {}
    ttft = [
        (min(r.first_ns if r.first_ns is not None else cut_ns, cut_ns) - r.sent_ns) / 1e6
        for r in records
        if r.first_ns is not None or (r.finished_ns or cut_ns) >= cut_ns
    ]
    gaps = [gap / 1e6 for r in records for gap in r.gaps_ns]
    ends = [(min(r.finished_ns or cut_ns, cut_ns) - r.sent_ns) / 1e6 for r in records]
    for name, values in (("ttft_ms", ttft), ("gap_ms", gaps), ("e2e_ms", ends)):
        if values:
            found |= {f"{name}_p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
    n_tokens = sum(1 for r in records for at_ns in token_times_ns(r) if at_ns <= window_ns)
    found["output_tokens_per_s"] = n_tokens / scenario.duration_s
    n_prompt = sum(r.n_prompt for r in records if r.first_ns is not None and r.first_ns <= window_ns)
    found["prompt_tokens_per_s"] = n_prompt / scenario.duration_s
    return {name: {"value": value, "bound": ""} for name, value in found.items()}
