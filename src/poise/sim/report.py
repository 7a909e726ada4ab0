"""What runs of the simulator found: figures by client, as tables for people and as plain values for JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.table import Table

from poise.sim.simulate import Simulation
from poise.sim.world import RequestResult


def figures(done: Simulation) -> dict[str, object]:
    """Everything about one run. `token_share`: a client's part of the output tokens, 0 to 1."""
    clients = {
        name: client_figures([r for r in done.records if r.client == name], done.elapsed_ns)
        for name in dict.fromkeys(r.client for r in done.records)
    }
    tokens = {name: sum(len(r.tokens) for r in done.records if r.client == name) for name in clients}
    for name, n_tokens in tokens.items():
        clients[name]["token_share"] = n_tokens / max(1, sum(tokens.values()))
    return {
        "scenario": done.scenario.name,
        "seed": done.seed,
        "steps": done.steps,
        "virtual_s": done.elapsed_ns / 1e9,
        "crashes": done.n_crashes,
        "digest": done.digest,
        "clients": clients,
    }


def client_figures(records: Sequence[RequestResult], window_ns: int) -> dict[str, object]:
    """Times in milliseconds; rates over the tokens that came within the window."""
    n_tokens = sum(1 for record in records for at_ns in token_times_ns(record) if at_ns <= window_ns)
    return {
        "requests": len(records),
        "outcomes": dict(Counter(record.outcome for record in records)),
        "ttft_ms": _percentiles([(r.first_ns - r.sent_ns) / 1e6 for r in records if r.first_ns is not None]),
        "gap_ms": _percentiles([gap / 1e6 for record in records for gap in record.gaps_ns]),
        "output_tokens_per_s": n_tokens / max(1e-9, window_ns / 1e9),
    }


def token_times_ns(record: RequestResult) -> list[int]:
    """When each token of a request came."""
    if record.first_ns is None:
        return []
    times = [record.first_ns]
    for gap_ns in record.gaps_ns:
        times.append(times[-1] + gap_ns)
    return times


def table(done: Simulation) -> Table:
    found = figures(done)
    title = f"{done.scenario.name}, seed {done.seed}: {done.steps} steps in {done.elapsed_ns / 1e9:.1f} virtual s"
    result = Table(title=title, caption=f"digest {done.digest}", title_justify="left")
    for column in (
        "client",
        "requests",
        "outcomes",
        "TTFT p50/p95/p99 ms",
        "gap p50/p95/p99 ms",
        "output tok/s (share)",
    ):
        result.add_column(column, justify="left" if column in ("client", "outcomes") else "right")
    clients = found["clients"]
    assert isinstance(clients, dict)
    for name, c in clients.items():
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in c["outcomes"].items())
        spread = [" / ".join("-" if v is None else f"{v:.0f}" for v in c[k].values()) for k in ("ttft_ms", "gap_ms")]
        output = f"{c['output_tokens_per_s']:.1f} ({c['token_share']:.1%})"
        result.add_row(name, str(c["requests"]), outcomes, *spread, output)
    return result


@dataclass(slots=True)
class Totals:
    """What many runs of one scenario were, without their records."""

    name: str
    n_runs: int = 0
    n_steps: int = 0
    virtual_ns: int = 0
    n_crashes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, done: Simulation) -> None:
        self.n_runs += 1
        self.n_steps += done.steps
        self.virtual_ns += done.elapsed_ns
        self.n_crashes += done.n_crashes
        self.outcomes.update(record.outcome for record in done.records)

    def line(self, elapsed_s: float) -> str:
        ends = ", ".join(f"{n} {outcome}" for outcome, n in sorted(self.outcomes.items()))
        return (
            f"{self.name}: {self.n_runs} runs, {self.n_steps} steps, {self.virtual_ns / 3.6e12:.1f} virtual h "
            f"in {elapsed_s:.0f} s, no invariant broken{f', {self.n_crashes} engines died' if self.n_crashes else ''}\n"
            f"  requests: {ends}"
        )


def _percentiles(values: list[float]) -> dict[str, float | None]:
    return {f"p{p}": float(np.percentile(values, p)) if values else None for p in (50, 95, 99)}
