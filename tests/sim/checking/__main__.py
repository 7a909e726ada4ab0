"""`python -m tests.sim.checking SCENARIO ...`: seed after seed of scenarios with faults, every invariant asked after every step.

`make sim` runs it. Exit codes: 0; 1 when an invariant was broken; 2 for an argument or a file that cannot be used. A failure
says what was broken where, and the command that repeats it."""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from poise.config import Settings
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import find_scenario, load_scenario
from poise_lab.sim.command import USAGE_ERROR, write_journal
from poise_lab.sim.costs import Costs, load_costs
from poise_lab.sim.report import Totals
from poise_lab.sim.simulate import Options, SimulationFailure
from tests.sim.checking.faults import Fault, parse_faults
from tests.sim.checking.simulate import simulate

ECHO = 7
"""Every second run, texts repeat themselves."""
COMMAND = "python -m tests.sim.checking"


def check(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="Files, or names in ./scenarios.")],
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 1,
    runs: Annotated[int, typer.Option(min=1, max=1_000_000, help="With seeds SEED, SEED+1, ...")] = 1,
    steps: Annotated[
        int, typer.Option(min=0, help="Stop a run after so many steps, then let it drain. 0: when the scenario ends.")
    ] = 0,
    faults: Annotated[str, typer.Option(help=f"What goes wrong: all, or of {', '.join(Fault)} (with commas).")] = "",
    journal: Annotated[Path | None, typer.Option(help="Write the last run's journal.", metavar="FILE")] = None,
    cost: Annotated[Path | None, typer.Option(help="What the machine costs; see poise sim --calibrate.", metavar="FILE")] = None,
    trace: Annotated[Path | None, typer.Option(help="For clients that follow a trace and name none.", metavar="FILE")] = None,
) -> None:
    """Check every invariant after every step of simulated runs in which things go wrong."""
    try:
        costs, chosen = load_costs(cost) if cost is not None else Costs(), parse_faults(faults)
        options = Options(costs, costs.pools, steps, journal is not None)
        loaded = [(path, load_scenario(path, trace)) for path in map(find_scenario, scenarios)]
    except ValueError as error:
        typer.echo(f"{COMMAND}: {error}", err=True)
        raise typer.Exit(USAGE_ERROR) from error
    files = "".join(f" --{name} {shlex.quote(str(file))}" for name, file in (("cost", cost), ("trace", trace)) if file)
    for path, scenario in loaded:
        try:
            _check(scenario, range(seed, seed + runs), options, chosen, journal)
        except SimulationFailure as failure:
            if journal is not None:
                write_journal(journal, failure.journal)
            typer.echo(_complaint(path, failure, options, chosen) + files, err=True)
            raise typer.Exit(1) from failure


def _check(scenario: Scenario, seeds: range, options: Options, faults: Sequence[Fault], journal: Path | None) -> None:
    """Every seed in turn, up to the first failure."""
    totals, n_crashes, began_s = Totals(scenario.name), 0, time.monotonic()
    for seed in seeds:
        done = simulate(scenario, Settings(), seed, options, faults, ECHO if seed % 2 else 0)
        totals.add(done)
        n_crashes += done.n_crashes
        if journal is not None:
            write_journal(journal, done.journal)
    died = f", {n_crashes} engines died" if n_crashes else ""
    typer.echo(totals.line(time.monotonic() - began_s, f", no invariant broken{died}"))


def _complaint(path: Path, failure: SimulationFailure, options: Options, faults: Sequence[Fault]) -> str:
    """What was broken where, and the command that repeats it."""
    cause = failure.__cause__
    what = f"invariant broken: {cause}" if isinstance(cause, AssertionError) else f"the engine crashed: {cause!r}"
    chosen = "all" if tuple(faults) == tuple(Fault) else ",".join(faults)
    command = f"{COMMAND} {shlex.quote(str(path))} --seed {failure.seed}"
    command += f" --steps {options.n_steps}" if options.n_steps else ""
    command += f" --faults {chosen}" if chosen else ""
    return f"{what}\n{failure}, faults: {chosen or 'none'}\nrepeat with: {command}"


app = typer.Typer(add_completion=False)
app.command()(check)

if __name__ == "__main__":
    app()
