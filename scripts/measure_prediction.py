"""Hold the simulator against a live server: the same scenarios foretold and measured, and the load at which each of them breaks.

    .venv/bin/python scripts/measure_prediction.py [--rounds N] [--scenarios mixed,flood,chat] [--break-scenario sustained]

Starts a server with the default settings. A first round of each scenario, with a seed of its own, calibrates the simulator; then
come the rounds that count, each simulated with the same seed. Prints predicted / live of the output tokens a second and of the
interactive TTFT p95. For the breaking load, the scenario's clients are multiplied until a target is missed (`poise sim
--find-break`), simulated and then live, where each trial is the median of `--break-rounds` rounds.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from poise.config import LoadedSettings, load
from poise.scheduler.request import RequestClass
from poise_lab.bench.rounds import OURS, ScenarioSource
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import load_scenario
from poise_lab.sim.breaking import Run, Target, find_break, parse_target, scaled
from poise_lab.sim.pressure import Pressure
from poise_lab.sim.report import group_figures
from poise_lab.sim.simulate import Options, Simulation, sim_policy, simulate
from poise_lab.tune.children import Server
from poise_lab.tune.judge import calibrated_round, live_round
from poise_lab.tune.measures import sim_options

FIGURES = (("all", "output_tokens_per_s"), ("interactive", "ttft_ms_p50"), ("interactive", "ttft_ms_p95"))
TARGETS = ("interactive.ttft_p95_ms=2000", "interactive.gap_p95_ms=250")
ROOT = Path(__file__).parent.parent
PRECISION = 1.15
"""Live trials take a minute each, and a load of so many clients has steps of its own."""


def figure(groups: Sequence[Mapping[str, Any]], name: str, key: str) -> float:
    found = [g for g in groups if g["kind"] == ("all" if name == "all" else "class") and g["name"] in (name, "")]
    return float(found[0]["figures"][key]["value"]) if found else float("nan")


class Prediction:
    """One server, and what the simulator has learnt of it."""

    def __init__(self, loaded: LoadedSettings, url: str) -> None:
        self._loaded = loaded
        self._url = url

    def live(self, scenario: Scenario, seed: int) -> list[Mapping[str, Any]]:
        done = live_round(ScenarioSource(scenario, scenario.name, ""), {OURS: self._url}, seed)
        groups: list[Mapping[str, Any]] = done["sides"][OURS]["groups"]
        return groups

    def learn(self, scenario: Scenario, seed: int) -> Options:
        """Costs of this host under the scenario, from a round that does not count."""
        found, template = calibrated_round(ScenarioSource(scenario, scenario.name, ""), self._url, seed)
        for pool, fit in found.pools.items():
            print(f"  {scenario.name}, pool {pool}: {fit.n_batches} batches, off by {fit.error_p50:.1%} in the median")
        return sim_options(found, template)

    def foretold(self, scenario: Scenario, seed: int, options: Options) -> Simulation:
        return simulate(scenario, self._loaded.settings, seed, options)

    def compare(self, scenario: Scenario, rounds: int, seed: int) -> Options:
        """Predicted beside measured, each a median over the rounds."""
        options = self.learn(scenario, seed)
        measured: dict[tuple[str, str], list[float]] = {f: [] for f in FIGURES}
        predicted: dict[tuple[str, str], list[float]] = {f: [] for f in FIGURES}
        for number in range(1, rounds + 1):
            live = self.live(scenario, seed + number)
            sim = group_figures(scenario, self.foretold(scenario, seed + number, options).records)
            for name, key in FIGURES:
                measured[name, key].append(figure(live, name, key))
                predicted[name, key].append(figure(sim, name, key))
        for name, key in FIGURES:
            one, other = median(predicted[name, key]), median(measured[name, key])
            spread = f"{min(measured[name, key]):.4g} to {max(measured[name, key]):.4g}"
            print(f"{scenario.name:10} {name:12} {key:20} {one:8.4g} / {other:8.4g} = {one / other:.2f}  (live {spread})")
        return options

    def breaking(self, scenario: Scenario, options: Options, targets: list[Target], rounds: int, seed: int) -> None:
        policy = sim_policy(self._loaded.settings)

        def run(load: Scenario) -> list[Run]:
            return [
                (self.foretold(load, seed + number, options), {c: Pressure(c, policy) for c in RequestClass})
                for number in range(rounds)
            ]

        kept, broken = find_break(scenario, targets, run, lambda _: None)
        if kept is None or broken is None:
            print(f"{scenario.name}: the simulator finds no breaking load in range")
            return
        guess = (kept.factor * broken.factor) ** 0.5
        print(f"{scenario.name}: foretold to break at x {guess:.2f}, missing {'; '.join(map(str, broken.missed))}")
        low, high, factor = 0.0, 0.0, guess
        while not (low and high) or high / low > PRECISION:
            missed = self._missed(scaled(scenario, factor), targets, rounds, seed)
            print(f"  live x {factor:.2f}: {'misses ' + missed if missed else 'keeps every target'}", flush=True)
            low, high = (low, factor) if missed else (factor, high)
            factor = (low * high) ** 0.5 if low and high else 1.3 * low if low else high / 1.3
        live = (low * high) ** 0.5
        print(f"{scenario.name}: breaks live at x {live:.2f} ({low:.2f} to {high:.2f}); foretold / live = {guess / live:.2f}")

    def _missed(self, load: Scenario, targets: list[Target], rounds: int, seed: int) -> str:
        """By the median of some rounds."""
        live = [self.live(load, seed + number) for number in range(rounds)]
        missed = []
        for target in targets:
            key = f"{target.measure}_ms_p{target.quantile}"
            value = median(figure(groups, str(target.request_class), key) for groups in live)
            missed += [f"{target}: {value:.4g}"] if value > target.most else []
        return "; ".join(missed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scenarios", default="mixed,flood,chat")
    parser.add_argument("--break-scenario", default="sustained")
    parser.add_argument("--break-rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=7000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="assignments")
    arguments = parser.parse_args()
    loaded = load([], os.environ, {}, ["engine.journal_entries=100000", *arguments.assignments])
    targets = [parse_target(text) for text in TARGETS]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(loaded, {}, Path(folder))
        try:
            prediction = Prediction(loaded, server.url)
            for name in filter(None, arguments.scenarios.split(",")):
                prediction.compare(load_scenario(ROOT / "scenarios" / f"{name}.toml"), arguments.rounds, arguments.seed)
            if arguments.break_scenario:
                scenario = load_scenario(ROOT / "scenarios" / f"{arguments.break_scenario}.toml")
                scenario = replace(scenario, duration_s=20.0)
                options = prediction.learn(scenario, arguments.seed)
                prediction.breaking(scenario, options, targets, arguments.break_rounds, arguments.seed + 100)
        finally:
            server.close()


if __name__ == "__main__":
    main()
