"""`poise sim`: scenarios through the production scheduler, on virtual time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from poise.config import Settings
from poise.scenarios import ScenarioError, load_scenario
from poise.sim.simulate import Simulation, simulate


def sim(
    scenarios: Annotated[list[Path], typer.Argument(help="Scenario files (scenarios/*.toml).", show_default=False)],
    seed: Annotated[int, typer.Option(help="Seed of the first run.")] = 1,
    runs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Runs of each scenario, with seeds SEED, SEED+1, ...")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run scenarios through the real scheduler and engine loop over a simulated runner.

    Virtual time: a minute of load takes about a second. Every invariant is checked after every step; a violation stops the
    run and names the scenario and the seed that repeat it.
    """
    out = Console()
    for path in scenarios:
        try:
            scenario = load_scenario(path)
        except ScenarioError as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(2) from error
        for run in range(seed, seed + runs):
            try:
                done = simulate(scenario, Settings(), run)
            except AssertionError as error:
                typer.echo(f"invariant broken: {error}\nrepeat with: poise sim {path} --seed {run}", err=True)
                raise typer.Exit(1) from error
            if as_json:
                typer.echo(json.dumps(_figures(done)))
            else:
                out.print(_table(done))


def _figures(done: Simulation) -> dict[str, object]:
    clients: dict[str, object] = {}
    for name in dict.fromkeys(r.client for r in done.records):
        records = [r for r in done.records if r.client == name]
        ttft_ms = [(r.first_ns - r.sent_ns) / 1e6 for r in records if r.first_ns is not None]
        gaps_ms = [gap / 1e6 for r in records for gap in r.gaps_ns]
        outcomes = [r.outcome for r in records]
        clients[name] = {
            "requests": len(records),
            "outcomes": {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)},
            "ttft_ms": _percentiles(ttft_ms),
            "gap_ms": _percentiles(gaps_ms),
            "output_tokens_per_s": sum(len(r.tokens) for r in records) / max(1e-9, done.elapsed_ns / 1e9),
        }
    return {
        "scenario": done.scenario.name,
        "seed": done.seed,
        "steps": done.steps,
        "virtual_s": done.elapsed_ns / 1e9,
        "digest": done.digest,
        "clients": clients,
    }


def _percentiles(values: list[float]) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if values else None for p in (50, 95, 99)}


def _table(done: Simulation) -> Table:
    figures = _figures(done)
    title = f"{done.scenario.name}, seed {done.seed}: {done.steps} steps in {done.elapsed_ns / 1e9:.1f} virtual s"
    table = Table(title=title, caption=f"digest {done.digest}", title_justify="left")
    for column in ("client", "requests", "outcomes", "TTFT p50/p95/p99 ms", "gap p50/p95/p99 ms", "output tok/s"):
        table.add_column(column, justify="left" if column in ("client", "outcomes") else "right")
    clients = figures["clients"]
    assert isinstance(clients, dict)
    for name, c in clients.items():
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in c["outcomes"].items())
        spread = [" / ".join("-" if v is None else f"{v:.0f}" for v in c[k].values()) for k in ("ttft_ms", "gap_ms")]
        table.add_row(name, str(c["requests"]), outcomes, *spread, f"{c['output_tokens_per_s']:.1f}")
    return table
