"""`poise bench compare A B`: two result files, or two servers measured in alternating rounds; is B worse than A?

Exit codes: 0; 1 when a guardrail is violated beyond noise; 2 for what cannot be used; 3 when there are too few rounds to say of a
guardrail, or no rounds to compare; 130 after Ctrl-C. The table goes to stdout; notes and errors go to stderr."""

import secrets
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table

from poise_lab.bench.command import check_writable, checked, failure_line, output, read_sources, run_rounds
from poise_lab.bench.comparison import METHOD, Estimate, Guard, State, compare, find, parse_guard
from poise_lab.bench.document import as_document
from poise_lab.bench.rounds import OURS, THEIRS, RunOptions
from poise_lab.bench.tables import SIGNS, distinct_groups, number, terminal_table, title_of
from poise_lab.bench.target import TargetError
from poise_lab.scenarios.files import InputError, explained

VIOLATED, UNDECIDED = 1, 3
SHOWN = (
    "ttft_ms_p50", "ttft_ms_p95", "gap_ms_p50", "gap_ms_p95", "max_gap_ms_p95", "e2e_ms_p50", "output_tokens_per_s",
    "prompt_tokens_per_s", "goodput_share", "goodput_per_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """One side of the comparison: a document and the side of it that counts."""

    name: str
    document: Mapping[str, Any]
    side: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a guardrail in one scenario."""

    scenario: str
    guard: str
    state: State
    reason: str


def bench_compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Before: a file of --json (FILE#theirs: its second server), or a URL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="After: likewise.")],
    guard: Annotated[
        list[str] | None, typer.Option(help="As 'interactive.ttft_p95<=1.1': most (or least) B/A. Repeatable.")
    ] = None,
    guards: Annotated[
        Path | None, typer.Option(help='TOML file with guards = ["...", ...].', metavar="FILE", show_default=False)
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the comparison to this file.", metavar="FILE")] = None,
    scenario: Annotated[list[str] | None, typer.Option(help="Of two URLs: what to run. Repeatable.")] = None,
    rounds: Annotated[int, typer.Option(help="Of two URLs: alternating rounds.")] = 5,
    seed: Annotated[int, typer.Option(help="Of two URLs: arrivals and lengths of round 0.")] = 1,
    pause: Annotated[float, typer.Option(help="Of two URLs: seconds of rest between two loads.")] = 3.0,
    results: Annotated[Path | None, typer.Option(help="Of two URLs: write every figure.", metavar="FILE")] = None,
    trace: Annotated[Path | None, typer.Option(help="Of two URLs: as in poise bench.", metavar="FILE")] = None,
    extensions: Annotated[bool, typer.Option(help="Of two URLs: send service_tier to both.")] = True,
) -> None:
    """Compare two results, or two servers in alternating rounds: B/A of each figure, with confidence intervals."""
    try:
        limits = [parse_guard(text) for text in [*(guard or []), *_from_file(guards)]]
        check_writable("--json", json)
        check_writable("--results", results)
        if a.startswith(("http://", "https://")) and b.startswith(("http://", "https://")):
            if not scenario:
                raise InputError("two URLs need a load: --scenario NAME, repeatable")
            # B is measured as ours, A as theirs: ratios are ours/theirs everywhere.
            urls, both = {OURS: b, THEIRS: a}, {OURS: extensions, THEIRS: extensions}
            sources, words = read_sources(scenario, trace, ()), secrets.randbits(31)
            options = RunOptions(sources, urls, both, rounds, seed, words, pause)
            before, after = _measure(checked(options, "A and B are the same server"), results)
        elif scenario or results or trace:
            raise InputError("--scenario, --results and --trace are for two URLs; here at least one of A and B is a file")
        else:
            before, after = _read(a), _read(b)
        code, found = _compare(before, after, limits)
    except (InputError, TargetError) as error:
        raise failure_line(str(error), command="poise bench compare") from error
    if json is not None:
        json.write_bytes(msgspec.json.encode(found))
    if code:
        raise typer.Exit(code)


def _compare(before: Result, after: Result, limits: Sequence[Guard]) -> tuple[int, dict[str, Any]]:
    """Prints the comparison; returns the exit code and everything as plain values."""
    others = {run["name"]: run for run in after.document["scenarios"]}
    common = [(run, others[run["name"]]) for run in before.document["scenarios"] if run["name"] in others]
    if not common:
        names = [", ".join(run["name"] for run in r.document["scenarios"]) for r in (before, after)]
        raise InputError(f"no scenario in both: A has {names[0]}, B has {names[1]}")
    scenarios, verdicts, n_pairs_least = [], [], sys.maxsize
    for run, other in common:
        estimates, n_pairs = compare(run["rounds"], before.side, other["rounds"], after.side)
        n_pairs_least = min(n_pairs_least, n_pairs)
        notes = _notes(before, after, run, other, n_pairs)
        output().print(_table(run, estimates, n_pairs))
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        verdicts += _judge(run["name"], estimates, limits)
        figures = [asdict(e) | {"verdict": e.verdict} for e in estimates]
        scenarios.append({"name": run["name"], "rounds": n_pairs, "notes": notes, "figures": figures})
    judged = {verdict.guard for verdict in verdicts}
    for limit in limits:
        if limit.text not in judged:
            known = sorted({f["group"] or "all" for s in scenarios for f in s["figures"]})
            raise InputError(f"guard {limit.text!r}: no such scenario or clients; there are {', '.join(known) or 'none'}")
    for verdict in verdicts:
        typer.echo(f"{verdict.state}: {verdict.scenario}: {verdict.guard}: {verdict.reason}")
    states = {verdict.state for verdict in verdicts}
    code = VIOLATED if "violated" in states else UNDECIDED if "undecided" in states or not n_pairs_least else 0
    sides = {"a": before.name, "b": after.name, "method": METHOD}
    return code, sides | {"scenarios": scenarios, "guards": verdicts, "exit_code": code}


def _judge(name: str, estimates: Sequence[Estimate], limits: Sequence[Guard]) -> list[Verdict]:
    """The guardrails that are about this scenario and clients that it has."""
    groups = {estimate.group or "all" for estimate in estimates}
    found = []
    for limit in limits:
        if limit.scenario not in (None, name) or (estimates and limit.group not in groups):
            continue
        estimate = find(estimates, limit)
        if estimate is None:
            found.append(Verdict(name, limit.text, "undecided", f"no round has {limit.figure} on both sides"))
        else:
            found.append(Verdict(name, limit.text, *limit.judge(estimate)))
    return found


def _notes(before: Result, after: Result, run: Mapping[str, Any], other: Mapping[str, Any], n_pairs: int) -> list[str]:
    notes = []
    if n_pairs == 0:
        notes.append("no round of A has the seed of a round of B: measure both with the same --seed.")
    elif n_pairs < 5:
        notes.append(f"{n_pairs} paired round(s) make wide intervals; five or more are advisable.")
    if run["text"] != other["text"]:
        notes.append("the scenario's file is not the same in A and B.")
    if [t["digest"] for t in run.get("traces", [])] != [t["digest"] for t in other.get("traces", [])]:
        notes.append("A and B followed different traces.")
    if before.document != after.document:
        notes.append("A and B were measured one after the other: what the machine did in between is in the ratios.")
        if before.document["host"] != after.document["host"]:
            notes.append("A and B were measured on different hosts.")
    return notes


def _table(run: Mapping[str, Any], estimates: Sequence[Estimate], n_pairs: int) -> Table:
    """The figures most looked at, for each set of clients once; the JSON file has all."""
    rows = []
    for label, groups in distinct_groups(run):
        first = next(iter(groups.values()))
        for e in (e for e in estimates if (e.kind, e.group) == (first["kind"], first["name"]) and e.figure in SHOWN):
            interval = "" if e.low is None or e.high is None else f"{e.low:.3g} – {e.high:.3g}"
            measure, _, quantile = e.figure.rpartition("_")
            figure = f"{title_of(measure)} {quantile}" if quantile in ("p50", "p95") else title_of(e.figure)
            rows.append([label, figure, number(e.a), number(e.b), f"{SIGNS[e.bound]}{e.ratio:.3g}", interval, e.verdict])
    header = ("clients", "figure", "A", "B", "B/A", "95 % interval", "")
    return terminal_table(header, rows, f"{run['name']}: B/A over {n_pairs} paired round(s)", METHOD)


def _measure(options: RunOptions, results: Path | None) -> tuple[Result, Result]:
    """A and B in alternating rounds. What is finished is written in any case; raises typer.Exit when it is not all."""
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    benchmark, failure = run_rounds(options)
    runs = [run for run in benchmark.runs if run.rounds]
    document = as_document(benchmark, options, runs, started_at)
    if results is not None and runs:
        results.write_bytes(msgspec.json.encode(document))
    if failure is not None:
        raise failure
    return Result(options.urls[THEIRS], document, THEIRS), Result(options.urls[OURS], document, OURS)


def _read(text: str) -> Result:
    """A result file, perhaps with the side after a '#'. Raises InputError."""
    path, _, side = text.partition("#")
    side = side or OURS
    with explained(path):
        data = Path(path).read_bytes()
    try:
        document = msgspec.json.decode(data)
        sides = {side for run in document["scenarios"] for finished in run["rounds"] for side in finished["sides"]}
        _ = document["host"]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a file of poise bench --json: {error!r}") from error
    if side not in sides:
        raise InputError(f"{text}: has no side {side!r}; it has {', '.join(sorted(sides)) or 'no round'}")
    return Result(text, document, side)


def _from_file(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"--guards {path}: cannot be read: {error}") from error
    texts = found.get("guards")
    if list(found) != ["guards"] or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise InputError(f'--guards {path}: expected guards = ["interactive.ttft_p95<=1.1", ...] and nothing else')
    return texts
