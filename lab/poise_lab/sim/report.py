"""What runs of the simulator found: figures by client, as tables for people and as plain values for JSON.

Predicted against live: the same scenario simulated, beside what `poise bench --json` measured of a real server. Both take the
requests of the same seeds, cut at the end of the drain, and the median over the rounds. The simulation has no HTTP, no tokenizer
and no other process on the machine; what the chat template adds to prompts is taken from the file."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.table import Table

from poise_lab.scenarios.files import InputError, explained
from poise_lab.scenarios.model import Scenario
from poise_lab.sim.simulate import Simulation
from poise_lab.sim.world import RequestResult, TemplateTokens, template_tokens

FIGURES = ("ttft_ms_p50", "ttft_ms_p95", "output_tokens_per_s")
"""Those that are predicted."""


def figures(done: Simulation) -> dict[str, Any]:
    """Everything about one run. Times in milliseconds; `token_share`: a client's part of the output tokens, 0 to 1."""
    n_tokens, clients = sum(len(r.tokens) for r in done.records), {}
    for name in dict.fromkeys(r.client for r in done.records):
        own = [r for r in done.records if r.client == name]
        n_within = sum(r.tokens_within(done.elapsed_ns) for r in own)
        clients[name] = {
            "requests": len(own),
            "outcomes": Counter(r.outcome for r in own),
            "ttft_ms": _percentiles([(r.first_ns - r.sent_ns) / 1e6 for r in own if r.first_ns is not None]),
            "gap_ms": _percentiles([gap / 1e6 for r in own for gap in r.gaps_ns]),
            "output_tokens_per_s": n_within / max(1e-9, done.elapsed_ns / 1e9),
            "token_share": sum(len(r.tokens) for r in own) / max(1, n_tokens),
        }
    return {
        "scenario": done.scenario.name,
        "seed": done.seed,
        "steps": done.steps,
        "virtual_s": done.elapsed_ns / 1e9,
        "digest": done.digest,
        "clients": clients,
    }


def group_figures(scenario: Scenario, records: Sequence[RequestResult]) -> list[dict[str, Any]]:
    """The figures that the benchmark would have of all clients, each class, each tenant and each client."""
    groups: list[tuple[str, str, Sequence[RequestResult]]] = [("all", "", records)]
    for kind, attribute in (("class", "request_class"), ("tenant", "tenant"), ("client", "client")):
        names = dict.fromkeys(str(getattr(record, attribute)) for record in records)
        groups += [(kind, name, [r for r in records if str(getattr(r, attribute)) == name]) for name in names]
    return [{"kind": kind, "name": name, "statuses": {}, "figures": _figures(scenario, own)} for kind, name, own in groups]


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
    found["output_tokens_per_s"] = sum(r.tokens_within(window_ns) for r in records) / scenario.duration_s
    n_prompt = sum(r.n_prompt for r in records if r.first_ns is not None and r.first_ns <= window_ns)
    found["prompt_tokens_per_s"] = n_prompt / scenario.duration_s
    return {name: {"value": value, "bound": ""} for name, value in found.items()}


def table(done: Simulation) -> Table:
    found = figures(done)
    title = f"{done.scenario.name}, seed {done.seed}: {done.steps} steps in {done.elapsed_ns / 1e9:.1f} virtual s"
    result = Table(title=title, caption=f"digest {done.digest}", title_justify="left")
    spreads = ("TTFT p50/p95/p99 ms", "gap p50/p95/p99 ms")
    for column in ("client", "requests", "outcomes", *spreads, "output tok/s (share)"):
        result.add_column(column, justify="left" if column in ("client", "outcomes") else "right")
    for name, c in found["clients"].items():
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in c["outcomes"].items())
        spread = [" / ".join("-" if v is None else f"{v:.0f}" for v in c[k].values()) for k in ("ttft_ms", "gap_ms")]
        output = f"{c['output_tokens_per_s']:.1f} ({c['token_share']:.1%})"
        result.add_row(name, str(c["requests"]), outcomes, *spread, output)
    return result


@dataclass(slots=True)
class Totals:
    """What many runs of one scenario were, without their records."""

    name: str
    sums: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, done: Simulation) -> None:
        self.sums.update(runs=1, steps=done.steps, virtual_ns=done.elapsed_ns)
        self.outcomes.update(record.outcome for record in done.records)

    def line(self, elapsed_s: float, note: str = "") -> str:
        """`note`: what else is to be said of all of them."""
        sums, ends = self.sums, ", ".join(f"{n} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        return (
            f"{self.name}: {sums['runs']} runs, {sums['steps']} steps, {sums['virtual_ns'] / 3.6e12:.1f} virtual h "
            f"in {elapsed_s:.0f} s{note}\n  requests: {ends}"
        )


def _percentiles(values: list[float]) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if values else None for p in (50, 95, 99)}


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
