"""A run as one JSON document: everything that was measured, and where it comes from. Reports and comparisons read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import msgspec

from poise.bench import provenance
from poise.bench.record import NS_PER_S
from poise.bench.report import GroupReport, group_reports, notes
from poise.bench.rounds import Benchmark, RunOptions, ScenarioRun
from poise.bench.stats import Ratio, Summary

FORMAT = 2


def as_document(benchmark: Benchmark, options: RunOptions, runs: list[ScenarioRun], started_at: str) -> dict[str, Any]:
    """The whole run in plain values, as if it had been read from its file."""
    document = {
        "format": FORMAT,
        "complete": benchmark.complete,
        "started_at": started_at,
        "options": {
            "rounds": options.n_rounds,
            "seed": options.seed,
            "text_seed": options.text_seed,
            "pause_s": options.pause_s,
        },
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "host": provenance.host(),
        "targets": benchmark.targets,
        "scenarios": [run_as_json(run, group_reports(run)) for run in runs],
    }
    found: dict[str, Any] = msgspec.to_builtins(document)
    return found


def run_as_json(run: ScenarioRun, reports: Sequence[GroupReport]) -> dict[str, object]:
    """Everything that was measured in a scenario, down to the time of each chunk."""
    return {
        "name": run.source.scenario.name,
        "path": run.source.path,
        "text": run.source.text,
        "traces": [
            {"path": trace.path, "digest": trace.digest, "requests": len(trace.rows)}
            for trace in dict.fromkeys(client.arrival.trace for client in run.source.scenario.clients)
            if trace is not None
        ],
        "clients": [
            {
                "name": client.name,
                "tenant": client.tenant,
                "class": client.request_class,
                "open_loop": client.is_open_loop,
            }
            for client in run.source.scenario.clients
        ],
        "targets": [asdict(targets) for targets in run.source.scenario.targets],
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
                        "events": [asdict(event) for event in result.events],
                        "groups": [_summary_as_json(report.by_round[number][side]) for report in reports],
                        "requests": [record.as_json() for record in result.records],
                    }
                    for side, result in finished.results.items()
                },
            }
            for number, finished in enumerate(run.rounds)
        ],
        "medians": {
            side: [_summary_as_json(report.medians[side]) for report in reports] for side in reports[0].medians
        },
        "ratios": [
            {"kind": report.group.kind, "name": report.group.name, "figures": _ratios_as_json(report.ratios)}
            for report in reports
            if report.ratios
        ],
    }


def _summary_as_json(summary: Summary) -> dict[str, object]:
    return {
        "kind": summary.group.kind,
        "name": summary.group.name,
        "clients": sorted(summary.group.clients),
        "statuses": summary.statuses,
        "censored": summary.n_censored,
        "short": summary.n_short,
        "goodput": None if summary.goodput is None else asdict(summary.goodput),
        "figures": {name: {"value": f.value, "bound": f.bound} for name, f in summary.figures.items()},
    }


def _ratios_as_json(found: Mapping[str, Ratio]) -> dict[str, object]:
    return {
        name: {
            "median": ratio.median.value,
            "bound": ratio.median.bound,
            "min": ratio.low,
            "max": ratio.high,
            "rounds": ratio.n_rounds,
        }
        for name, ratio in found.items()
    }
