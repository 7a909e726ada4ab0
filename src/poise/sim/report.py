"""What runs of the simulator found: figures by client, as tables for people and as plain values for JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.table import Table

from poise.scenarios.model import Scenario
from poise.sim.simulate import Simulation
from poise.sim.world import RequestResult


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
