"""`poise bench`: checks the arguments, runs the rounds, prints and stores what they found.

Exit codes: 0; 1 when some round got not a single token from a server; 2 for bad arguments or a server that is not there;
130 after Ctrl-C. The tables go to stdout; progress, notes and errors go to stderr."""

import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from poise_lab.bench.document import as_document
from poise_lab.bench.page import plotly_script, to_html
from poise_lab.bench.rounds import OURS, THEIRS, Benchmark, RunOptions, ScenarioSource
from poise_lab.bench.stats import by_class
from poise_lab.bench.tables import FIGURES_CAPTION, count_rows, figure_rows, terminal_table, to_markdown
from poise_lab.bench.target import TargetError, base_url
from poise_lab.scenarios.files import InputError
from poise_lab.scenarios.parser import find_scenario, load_scenario, parse_target

PLAIN_WIDTH = 200  # Of the tables when stdout is a file or a pipe, which has no width of its own.


def bench(
    scenarios: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="Files, or names in ./scenarios.")],
    url: Annotated[str, typer.Option(help="The server to measure.")] = "http://127.0.0.1:8000",
    against: Annotated[str | None, typer.Option(help="A second server, measured in alternation.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each scenario.")] = 1,
    seed: Annotated[int, typer.Option(help="Arrivals and lengths of round 0; each round adds 1.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write every figure to this file.", metavar="FILE")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this file.", metavar="FILE")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with tables and plots.", metavar="FILE")] = None,
    pause: Annotated[float, typer.Option(help="Seconds of rest between two loads.")] = 3.0,
    text_seed: Annotated[
        int | None, typer.Option(help="Words of the prompts. Drawn anew if not given, so that no cache knows them.")
    ] = None,
    against_extensions: Annotated[
        bool, typer.Option("--against-extensions", help="Send service_tier to the second server, too.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals and lengths for clients that follow a trace and name none.", metavar="FILE")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="As interactive.ttft_ms=800: for the goodput. Repeatable.")] = None,
    allow_kill: Annotated[
        bool, typer.Option("--allow-kill", help="Let a scenario's kill_engine events kill the first server's engine.")
    ] = False,
    engine_pid: Annotated[int | None, typer.Option(help="That engine's process, if the server does not tell.")] = None,
    key: Annotated[
        str, typer.Option(help="The API key of all clients, for servers that want one; without it each sends its own.")
    ] = "",
    max_tokens: Annotated[
        bool,
        typer.Option("--max-tokens/--no-max-tokens", help="Whether requests name one; if not, clients leave at that length."),
    ] = True,
) -> None:
    """Measure servers under the load of SCENARIO, from outside. `poise bench compare A B` compares two results or servers."""
    try:
        urls = {OURS: url} | ({THEIRS: against} if against is not None else {})
        extensions = {OURS: True, THEIRS: against_extensions}
        sources = read_sources(scenarios, trace, target or ())
        text_seed = secrets.randbits(31) if text_seed is None else text_seed
        asked = (rounds, seed, text_seed, pause, allow_kill, engine_pid, key, max_tokens)
        options = checked(RunOptions(sources, urls, extensions, *asked), "--against is the same server as --url")
        plotly = plotly_script() if html is not None else ""
        for option, path in {"json": json, "markdown": markdown, "html": html}.items():
            check_writable(f"--{option}", path)
    except (InputError, TargetError) as error:
        raise failure_line(str(error)) from error
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    benchmark, failure = run_rounds(options)
    runs = [run for run in benchmark.runs if run.rounds]
    if runs:
        document = as_document(benchmark, options, runs, started_at)
        for found in document["scenarios"]:
            print_run(found, benchmark, options)
        if json is not None:
            json.write_bytes(msgspec.json.encode(document))
        if markdown is not None:
            markdown.write_text(to_markdown(document), encoding="utf-8")
        if html is not None:
            html.write_text(to_html(document, plotly), encoding="utf-8")
    if failure is not None:
        raise failure
    for run in runs:
        for number, finished in enumerate(run.rounds):
            for result in finished.results.values():
                if not any(record.chunks_ns for record in result.records):
                    what = f"{run.source.scenario.name}, round {number}: no token at all from {result.url}"
                    raise failure_line(what, exit_code=1)


def read_sources(names: list[str], trace: Path | None, targets: Sequence[str]) -> tuple[ScenarioSource, ...]:
    """The scenarios of these names, with the targets given beside them. Raises InputError."""
    given = [parse_target(text) for text in targets]
    sources = []
    for name in names:
        path = find_scenario(name)
        scenario = load_scenario(path, trace)
        scenario = replace(scenario, targets=tuple(by_class(scenario.targets, given).values()))
        sources.append(ScenarioSource(scenario, str(path), path.read_text(encoding="utf-8")))
    if trace is not None and not any(c.arrival.trace for source in sources for c in source.scenario.clients):
        raise InputError(f"--trace {trace}: no client of {', '.join(names)} follows a trace")
    return tuple(sources)


def checked(options: RunOptions, same: str) -> RunOptions:
    """What was given on the command line; `same` says that two urls are one server. Raises what `bench` refuses."""
    check_range("--rounds", options.n_rounds, 1, 1000)
    check_range("--seed", options.seed, 0, 1 << 31)
    check_range("--pause", options.pause_s, 0, 3600)
    check_range("--text-seed", options.text_seed, 0, 1 << 31)
    bases = {side: base_url(url) for side, url in options.urls.items()}
    if bases.get(THEIRS) == bases[OURS]:
        raise InputError(f"{same}: its caches would know the second turn's prompts")
    return replace(options, urls=bases)


def run_rounds(options: RunOptions) -> tuple[Benchmark, typer.Exit | None]:
    """Runs to the end, to Ctrl-C or to the loss of a server. What is finished is in the Benchmark in each case."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    total_s = sum(s.scenario.duration_s for s in options.sources) * options.n_rounds * len(options.urls)
    with Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=total_s)
        done_s = 0.0

        def on_tick(name: str, side: str, number: int, elapsed_s: float, ended: bool) -> None:
            nonlocal done_s
            text = f"{name} · round {number + 1}/{options.n_rounds} · {side}"
            progress.update(task, description=text, completed=done_s + elapsed_s)
            if ended:
                done_s += elapsed_s

        benchmark = Benchmark(options, on_tick)
        try:
            asyncio.run(benchmark.run())
        except KeyboardInterrupt:
            progress.stop()
            n_finished = sum(len(run.rounds) for run in benchmark.runs)
            return benchmark, failure_line(f"interrupted after {n_finished} finished round(s)", exit_code=130)
        except TargetError as error:
            progress.stop()
            return benchmark, failure_line(str(error))
    return benchmark, None


def print_run(run: dict[str, Any], benchmark: Benchmark, options: RunOptions) -> None:
    """A scenario of the document: its tables, then its notes on stderr."""
    servers = " · ".join(f"{side}: {target.url} ({target.model})" for side, target in benchmark.targets.items())
    title = f"{run['name']} · {len(run['rounds'])} round(s) from seed {options.seed} · {servers}"
    figures = terminal_table(*figure_rows(run), title, FIGURES_CAPTION)
    output().print(figures, terminal_table(*count_rows(run), "requests, all rounds"), soft_wrap=False)
    for note in run["notes"]:
        Console(stderr=True, soft_wrap=True).print(f"note: {note}", markup=False, highlight=False)


def output() -> Console:
    """Where the tables go."""
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


def check_range(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{option} {value}: expected {low:g} to {high:g}")


def check_writable(option: str, path: Path | None) -> None:
    """A file that is wanted can be written: better said before the load than after it. Raises InputError."""
    if path is None:
        return
    folder = path.parent
    if path.is_dir() or not folder.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise InputError(f"{option} {path}: cannot be written")


def failure_line(message: str, exit_code: int = 2, command: str = "poise bench") -> typer.Exit:
    """Says `message` in one line on stderr and returns what to raise."""
    typer.echo(f"{command}: {' '.join(message.split())}", err=True)
    return typer.Exit(exit_code)


if __name__ == "__main__":
    typer.run(bench)
