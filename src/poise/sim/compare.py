"""Predicted against live: the same scenario simulated, beside what `poise bench --json` measured of a real server.

Both take the requests of the same seeds, cut at the end of the drain, and the median over the rounds. The simulation has no
HTTP, no tokenizer and no other process on the machine; what the chat template adds to prompts is taken from the file."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from poise.scenarios.files import InputError, explained
from poise.scenarios.model import Scenario
from poise.sim.report import group_figures
from poise.sim.simulate import Simulation
from poise.sim.world import TemplateTokens, template_tokens

FIGURES = ("ttft_ms_p50", "ttft_ms_p95", "output_tokens_per_s")


@dataclass(frozen=True, slots=True)
class Live:
    """What the benchmark measured of our server: the rounds' seeds, what the template adds, medians by client."""

    seeds: list[int]
    template: TemplateTokens
    clients: dict[str, dict[str, float]]


def load_live(path: Path, scenario: Scenario) -> Live:
    """The scenario's part of a benchmark file. Raises InputError."""
    with explained(path):
        text = path.read_text(encoding="utf-8")
    try:
        runs = {run["name"]: run for run in json.loads(text)["scenarios"]}
        if (run := runs.get(scenario.name)) is not None:
            requests = [r for n in run["rounds"] for r in n["sides"]["ours"]["requests"]]
            clients = {
                group["name"]: {name: f["value"] for name, f in group["figures"].items()}
                for group in run["medians"]["ours"]
                if group["kind"] == "client"
            }
            return Live([n["seed"] for n in run["rounds"]], template_tokens(scenario, requests), clients)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of poise bench --json: {error!r}") from error
    raise InputError(f"{path}: holds no scenario {scenario.name!r}; it has {', '.join(runs)}")


def predict(scenario: Scenario, live: Live, run: Callable[[int], Simulation]) -> dict[str, dict[str, float]]:
    """Median figures by client over the rounds' seeds; `run` simulates one seed."""
    found: dict[tuple[str, str], list[float]] = {}
    for seed in live.seeds:
        for group in group_figures(scenario, run(seed).records):
            for figure in FIGURES if group["kind"] == "client" else ():
                if figure in group["figures"]:
                    found.setdefault((group["name"], figure), []).append(group["figures"][figure]["value"])
    return {
        client.name: {figure: median(found[client.name, figure]) for figure in FIGURES if (client.name, figure) in found}
        for client in scenario.clients
    }


def comparison_table(predicted: dict[str, dict[str, float]], live: Live) -> Table:
    table = Table(title="predicted / live", title_justify="left")
    for column in ("client", "TTFT p50 ms", "TTFT p95 ms", "output tokens/s"):
        table.add_column(column, justify="left" if column == "client" else "right")
    for name, figures in predicted.items():
        measured: dict[str, Any] = live.clients.get(name, {})
        table.add_row(name, *(_cell(figures.get(f), measured.get(f)) for f in FIGURES))
    return table


def _cell(predicted: float | None, live: float | None) -> str:
    if predicted is None or live is None:
        return "-" if predicted is None and live is None else f"{_show(predicted)} / {_show(live)}"
    ratio = f" ({predicted / live:.2f})" if live else ""
    return f"{_show(predicted)} / {_show(live)}{ratio}"


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"
