"""`poise sim`: scenarios through the production scheduler, on virtual time; replay, calibration and the breaking point.

Exit codes: 0; 1 when the engine broke off or a replay differs; 2 for an argument or a file that cannot be used."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from poise.config import Settings
from poise.engine.journal import Journal, JournalError
from poise.scheduler.request import RequestClass
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import find_scenario, load_scenario
from poise_lab.sim.breaking import DEFAULT_TARGETS, Run, Target, Trial, explain, find_break, parse_target
from poise_lab.sim.calibrate import calibrate
from poise_lab.sim.costs import Costs, load_costs
from poise_lab.sim.pressure import Pressure
from poise_lab.sim.replay import replay
from poise_lab.sim.report import Totals, comparison_table, figures, load_live, predict, table
from poise_lab.sim.simulate import Options, SimulationFailure, sim_policy, simulate
from poise_lab.sim.world import ignored

TABLES_MAX = 3
"""More runs than this are summed up in a line."""
BREAK_RUNS = 5
"""Of each load, when its breaking point is sought: with one seed it is off by a quarter where clients are few."""
USAGE_ERROR = 2


def sim(
    scenarios: Annotated[
        list[str] | None, typer.Argument(metavar="SCENARIO...", help="Files, or names in ./scenarios.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 1,
    runs: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help=f"With seeds SEED, SEED+1, ... [1; {BREAK_RUNS} to find a break]")
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Stop a run after so many steps, then let it drain. 0: when the scenario ends.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    journal: Annotated[Path | None, typer.Option(help="Write the last run's journal.", metavar="FILE")] = None,
    cost: Annotated[Path | None, typer.Option(help="What the machine costs; see --calibrate.", metavar="FILE")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="A file of poise bench --json: predicted beside measured.", metavar="FILE")
    ] = None,
    find_break_: Annotated[bool, typer.Option("--find-break", help="Raise the load until a target is missed.")] = False,
    target: Annotated[
        list[str] | None, typer.Option(help=f"For --find-break, repeatable. Default: {' '.join(DEFAULT_TARGETS)}")
    ] = None,
    replay_: Annotated[
        Path | None, typer.Option("--replay", help="Repeat a journal; say whether the plans are the same.", metavar="FILE")
    ] = None,
    calibrate_: Annotated[
        Path | None, typer.Option("--calibrate", help="Fit a cost file to a live journal.", metavar="FILE")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals and lengths for clients that follow a trace and name none.", metavar="FILE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where --calibrate writes; else to stdout.", metavar="FILE")] = None,
) -> None:
    """Run scenarios through the real scheduler and engine loop over a simulated runner.

    Virtual time: a minute of load takes about a second, and the same seed gives the same run."""
    try:
        if replay_ is not None:
            _replay(replay_)
        elif calibrate_ is not None:
            _calibrate(calibrate_, out)
        elif not scenarios:
            raise typer.BadParameter("name at least one scenario file, or --replay or --calibrate")
        else:
            costs = load_costs(cost) if cost is not None else Costs()
            options = Options(costs, costs.pools, steps, journal is not None)
            loaded = [load_scenario(find_scenario(name), trace) for name in scenarios]
            for scenario in loaded:
                for line in ignored(scenario):
                    typer.echo(f"{scenario.name}: not simulated: {line}", err=True)
            if compare is not None:
                _compare(loaded, compare, options)
            elif find_break_:
                targets = [parse_target(text) for text in target or DEFAULT_TARGETS]
                for scenario in loaded:
                    _find_break(scenario, targets, range(seed, seed + (runs or BREAK_RUNS)), options)
            else:
                for scenario in loaded:
                    _simulate(scenario, range(seed, seed + (runs or 1)), options, as_json, journal)
    except SimulationFailure as failure:
        typer.echo(f"poise sim: {failure}: {failure.__cause__!r}", err=True)
        raise typer.Exit(1) from failure
    except (JournalError, ValueError, OSError) as error:
        typer.echo(f"poise sim: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from error


def _simulate(scenario: Scenario, seeds: range, options: Options, as_json: bool, journal: Path | None) -> None:
    out, totals, began_s = Console(), Totals(scenario.name), time.monotonic()
    for seed in seeds:
        done = simulate(scenario, Settings(), seed, options)
        totals.add(done)
        if as_json:
            typer.echo(json.dumps(figures(done)))
        elif len(seeds) <= TABLES_MAX:
            out.print(table(done))
        if journal is not None:
            write_journal(journal, done.journal)
    if not as_json and len(seeds) > TABLES_MAX:
        typer.echo(totals.line(time.monotonic() - began_s))


def write_journal(path: Path, journal: Journal) -> None:
    """As `--replay` and `--calibrate` read it. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in journal.lines())


def _replay(path: Path) -> None:
    with path.open(encoding="utf-8") as lines:
        done = replay(lines)
    if done.difference:
        typer.echo(f"{path}: {done.difference}")
        raise typer.Exit(1)
    typer.echo(f"{path}: {done.n_entries} entries, {done.n_plans} plans, all as recorded")


def _calibrate(path: Path, out: Path | None) -> None:
    with path.open(encoding="utf-8") as lines:
        found = calibrate(lines)
    if out is None:
        typer.echo(found.toml(), nl=False)
    else:
        out.write_text(found.toml(), encoding="utf-8")
    for name, fit in found.pools.items():
        error = f"off by {fit.error_p50:.1%} in the median, {fit.error_p95:.1%} at the 95th percentile"
        typer.echo(f"pool {name}: {fit.n_batches} batches, {error}", err=True)


def _compare(scenarios: list[Scenario], path: Path, options: Options) -> None:
    for scenario in scenarios:
        live = load_live(path, scenario)
        run = partial(simulate, scenario, Settings(), options=replace(options, template=live.template))
        Console().print(comparison_table(predict(scenario, live, run), live))


def _find_break(scenario: Scenario, targets: list[Target], seeds: range, options: Options) -> None:
    settings = Settings()
    policy = sim_policy(settings)

    def once(load: Scenario, seed: int) -> Run:
        watched = {c: Pressure(c, policy) for c in RequestClass}
        observers = tuple(p.recorded for p in watched.values())
        return simulate(load, settings, seed, replace(options, observers=observers)), watched

    def run(load: Scenario) -> list[Run]:
        return [once(load, seed) for seed in seeds]

    def on_trial(trial: Trial) -> None:
        verdict = "misses " + ", ".join(map(str, trial.missed)) if trial.missed else "keeps every target"
        typer.echo(f"  x {trial.factor:<6.3g} {verdict}")

    first, last = seeds[0], seeds[-1]
    typer.echo(f"{scenario.name}, " + (f"seed {first}:" if first == last else f"seeds {first} to {last}, medians:"))
    kept, broken = find_break(scenario, targets, run, on_trial)
    if broken is None:
        typer.echo(f"no target is missed up to {kept.factor if kept else 0:g} times the load")
        return
    typer.echo(f"breaks between {f'{kept.factor:.3g}' if kept else 'nothing'} and {broken.factor:.3g} times the load")
    for line in explain(broken):
        typer.echo(f"  {line}")
