"""A run as one JSON document: everything that was measured, the figures of each group of clients, notes on what may mislead, and
where it comes from. Reports and comparisons read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from poise_lab.bench import provenance
from poise_lab.bench.load import RoundResult
from poise_lab.bench.record import NS_PER_S, OK
from poise_lab.bench.rounds import OURS, THEIRS, Benchmark, RunOptions, ScenarioRun
from poise_lab.bench.stats import Group, Ratio, Summary, by_class, groups_of, over_rounds, ratios, summarize
from poise_lab.scenarios.model import Client

FORMAT = 2
_CPU_SHARE_NOTED = 0.1
_LATE_MS_NOTED = 50.0
_LENGTH_RATIO_NOTED = 0.02


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
    """Everything that was measured in a scenario, in plain values, down to each chunk. There is at least one finished round."""
    reports = [_group_report(run, group) for group in groups_of(run.source.scenario.clients)]
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
        "notes": _notes(run, reports),
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
                        "joules": result.joules,
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


@dataclass(frozen=True, slots=True)
class GroupReport:
    """One group of clients: each side's figures by round, their medians, and the ratios between the sides."""

    group: Group
    by_round: list[dict[str, Summary]]
    medians: dict[str, Summary]
    ratios: dict[str, Ratio]


def _notes(run: ScenarioRun, reports: Sequence[GroupReport]) -> list[str]:
    """What a reader should know before believing the tables; mostly nothing."""
    found = []
    whole = reports[0]
    if any(f.bound for report in reports for s in report.medians.values() for f in s.figures.values()):
        found.append("≥ and ≤ mark bounds, ~ is uncertain: requests were cut at the round's end and would have gone on.")
    for side, summary in whole.medians.items():
        results = [r.results[side] for r in run.rounds if side in r.results]
        share = max(result.cpu_s * NS_PER_S / result.elapsed_ns for result in results)
        if share > _CPU_SHARE_NOTED:
            found.append(f"{side}: the client itself used up to {share:.0%} of a core.")
        late_ms = max(result.late_ns_max for result in results) / 1e6
        if late_ms > _LATE_MS_NOTED:
            found.append(f"{side}: the client sent requests up to {late_ms:.0f} ms late; the waiting counts.")
        found += _energy_notes(side, results)
        if summary.n_short:
            found.append(f"{side}: {summary.n_short} answers were shorter than asked for, so there was less to do.")
        if any(status != "ok" for result in results for status in result.warmup_statuses):
            found.append(f"{side}: not every warm-up request succeeded.")
        found += [f"{side}: {text}" for text in dict.fromkeys(_event_notes(results))]
    found += _client_notes(run.source.scenario.clients)
    if OURS in whole.medians and THEIRS in whole.medians:
        found += _length_notes(run)
    return found


def _group_report(run: ScenarioRun, group: Group) -> GroupReport:
    targets = by_class(run.source.scenario.targets)
    by_round = [
        {side: summarize(group, result.records, result.window_ns, targets) for side, result in finished.results.items()}
        for finished in run.rounds
    ]
    sides = [side for side in (OURS, THEIRS) if any(side in summaries for summaries in by_round)]
    medians = {side: over_rounds([s[side] for s in by_round if side in s]) for side in sides}
    paired = [(s[OURS], s[THEIRS]) for s in by_round if OURS in s and THEIRS in s]
    return GroupReport(group, by_round, medians, ratios(paired))


def _event_notes(results: Sequence[RoundResult]) -> list[str]:
    n_done = sum(1 for result in results for event in result.events if event.done)
    not_done = [f"{e.kind} at {e.at_s:g} s was not done: {e.detail}" for r in results for e in r.events if not e.done]
    return [*([f"the engine was killed {n_done} time(s)."] if n_done else []), *not_done]


def _energy_notes(side: str, results: Sequence[RoundResult]) -> list[str]:
    """Joules for each token of output, where the server knows its power."""
    n_tokens = sum(record.n_output_tokens for result in results for record in result.records)
    names = dict.fromkeys(name for result in results for name in result.joules)
    sums = {name: sum(result.joules.get(name, 0.0) for result in results) for name in names}
    return [f"{side}: {spent / n_tokens:.3g} J a token of output ({name})." for name, spent in sums.items() if n_tokens]


def _client_notes(clients: Sequence[Client]) -> list[str]:
    """What the way in which clients send and read does to their figures."""
    found = []
    closed = [client.name for client in clients if not client.is_open_loop and not client.arrival.rate_per_s]
    if closed:
        found.append(
            f"closed loops: {', '.join(closed)}. While a server is slow they send less, so its slow times weigh less; "
            "with arrival.rate_per_s there are corrected figures."
        )
    slow = [client.name for client in clients if client.reading is not None]
    if slow:
        found.append(f"slow readers: {', '.join(slow)}. Their gaps and ends are their own doing and are in no figure.")
    return found


def _length_notes(run: ScenarioRun) -> list[str]:
    """Compares the lengths of those requests that both servers answered to the end."""
    totals = {THEIRS: [0, 0], OURS: [0, 0]}
    for finished in run.rounds:
        answered = {
            side: {(r.client, r.instance, r.index): r for r in result.records if r.status == OK}
            for side, result in finished.results.items()
        }
        for key in answered[OURS].keys() & answered[THEIRS].keys():
            for side, lengths in totals.items():
                lengths[0] += answered[side][key].n_prompt_tokens
                lengths[1] += answered[side][key].n_output_tokens
    found = []
    for kind, ours, theirs in zip(("prompt", "output"), totals[OURS], totals[THEIRS], strict=True):
        if theirs and abs(ours / theirs - 1.0) > _LENGTH_RATIO_NOTED:
            found.append(f"the same requests had {ours} {kind} tokens on ours, {theirs} on theirs: not the same work.")
    return found
