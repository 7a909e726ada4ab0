"""A run as one JSON document: everything that was measured, and where it comes from. Reports and comparisons read it."""

from typing import Any

import msgspec

from poise.bench import provenance
from poise.bench.record import NS_PER_S
from poise.bench.report import group_reports, notes
from poise.bench.rounds import Benchmark, RunOptions, ScenarioRun

FORMAT = 2


def as_document(benchmark: Benchmark, options: RunOptions, runs: list[ScenarioRun], started_at: str) -> dict[str, Any]:
    """The whole run in plain values, as if it had been read from its file."""
    seeds = {"seed": options.seed, "text_seed": options.text_seed}
    document = {
        "format": FORMAT,
        "complete": benchmark.complete,
        "started_at": started_at,
        "options": {"rounds": options.n_rounds} | seeds | {"pause_s": options.pause_s, "max_tokens": options.max_tokens},
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "host": provenance.host(),
        "targets": benchmark.targets,
        "scenarios": [run_as_json(run) for run in runs],
    }
    return dict(msgspec.to_builtins(document))


def run_as_json(run: ScenarioRun) -> dict[str, Any]:
    """Everything that was measured in a scenario, in plain values, down to the time of each chunk."""
    reports = group_reports(run)
    document = {
        "name": run.source.scenario.name,
        "path": run.source.path,
        "text": run.source.text,
        "traces": [
            {"path": trace.path, "digest": trace.digest, "requests": len(trace.rows)}
            for trace in dict.fromkeys(client.arrival.trace for client in run.source.scenario.clients)
            if trace is not None
        ],
        "clients": [
            {"name": c.name, "tenant": c.tenant, "class": c.request_class, "open_loop": c.is_open_loop}
            for c in run.source.scenario.clients
        ],
        "targets": run.source.scenario.targets,
        "notes": notes(run, reports),
        "rounds": [
            {
                "round": number,
                "seed": finished.seed,
                "order": list(finished.results),
                "sides": {
                    side: {
                        "url": result.url,
                        "window_s": result.window_ns / NS_PER_S,
                        "elapsed_s": result.elapsed_ns / NS_PER_S,
                        "client_cpu_s": result.cpu_s,
                        "late_ms_max": result.late_ns_max / 1e6,
                        "warmup": result.warmup_statuses,
                        "events": result.events,
                        "groups": [report.by_round[number][side] for report in reports],
                        "requests": [record.as_json() for record in result.records],
                    }
                    for side, result in finished.results.items()
                },
            }
            for number, finished in enumerate(run.rounds)
        ],
        "medians": {side: [report.medians[side] for report in reports] for side in reports[0].medians},
        "ratios": [{"kind": r.group.kind, "name": r.group.name, "figures": r.ratios} for r in reports if r.ratios],
    }
    return dict(msgspec.to_builtins(document))
