"""`poise capacity`: measures how much load this host takes with a model and settings, and records it; `show` compares.

Exit codes: 0; 2 for what cannot be used or measured; 130 after Ctrl-C. What was measured until then is recorded; the rest is
not measured."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.table import Table

from poise.config import LoadedSettings, load
from poise.llama.files.gguf import read_header
from poise.llama.fitting import capacity as records
from poise.llama.fitting.capacity import CapacityRecord, Load
from poise.llama.fitting.fit import model_path
from poise_lab.bench.command import check_range, output
from poise_lab.bench.rounds import OURS, ScenarioSource
from poise_lab.bench.target import base_url
from poise_lab.scenarios.model import Scenario
from poise_lab.sim.breaking import DEFAULT_TARGETS, Target, parse_target
from poise_lab.sim.simulate import Options, SimulationFailure
from poise_lab.tune.capacity import KINDS, Result, context_load, guess, judge, load_of, longest_context, search, slots_for
from poise_lab.tune.children import CannotMeasure, Server, terminable
from poise_lab.tune.command import INTERRUPTED, Assignments, ModelFile, Profile, refusing
from poise_lab.tune.evidence import describe
from poise_lab.tune.judge import calibrated_round, live_round
from poise_lab.tune.measures import sim_options

COMMAND = "poise capacity"
MINUTES, ROUND_S = 20.0, 15.0

ConfigFiles = Annotated[list[Path] | None, typer.Option("--config", metavar="FILE", help="As of poise serve. Repeatable.")]


def capacity(
    url: Annotated[str | None, typer.Option(help="A running server of these settings; else one is started.")] = None,
    minutes: Annotated[float, typer.Option(help="When it is over, the rest is not measured.")] = MINUTES,
    round_s: Annotated[float, typer.Option(help="Seconds of load of each live round.")] = ROUND_S,
    target: Annotated[
        list[str] | None, typer.Option(help=f"As of poise sim. Repeatable. Default: {' '.join(DEFAULT_TARGETS)}")
    ] = None,
    seed: Annotated[int, typer.Option(help="Arrivals and lengths follow from it.")] = 1,
    config: ConfigFiles = None,
    profile: Profile = None,
    model: ModelFile = None,
    assignments: Assignments = None,
) -> int:
    """Measure how many requests at once keep their targets here, and record it. `poise capacity show` compares it with limits."""
    with refusing(COMMAND):
        check_range("--minutes", minutes, 0.1, 10_000)
        check_range("--round-s", round_s, 1, 600)
        check_range("--seed", seed, 0, 1 << 30)
        targets = [parse_target(text) for text in target or DEFAULT_TARGETS]
        loaded = load(config, os.environ, {"profile": profile, "model.path": model}, assignments)
        path = model_path(loaded.settings)
        provenance = describe(loaded.settings)
        with terminable(), _server(url, loaded) as place:
            until = time.monotonic() + 60 * minutes
            measuring = Measuring(loaded, path, place, targets, round_s, seed, until, typer.echo)
            interrupted = measuring.run()
        record = measuring.record(provenance)
        file = records.write_record(loaded.settings, path, record)
    typer.echo(f"recorded in {file}")
    _print(record, loaded)
    return INTERRUPTED if interrupted else 0


def capacity_show(
    config: ConfigFiles = None, profile: Profile = None, model: ModelFile = None, assignments: Assignments = None
) -> int:
    """Show what was measured with this model and engine, and every limit beside it."""
    with refusing(f"{COMMAND} show"):
        loaded = load(config, os.environ, {"profile": profile, "model.path": model}, assignments)
        record = records.read_record(loaded.settings, model_path(loaded.settings))
    if record is None:
        typer.echo(f"nothing was measured on this host with this model and engine; `{COMMAND}` does it")
        return 0
    _print(record, loaded)
    return 0


@dataclass(slots=True)
class Measuring:
    """The search of every kind, one after another. What is measured is there at any time."""

    loaded: LoadedSettings
    model: Path
    url: str
    targets: list[Target]
    round_s: float
    seed: int
    until: float
    say: Callable[[str], None]
    options: Options | None = None
    _loads: dict[str, Load] = field(default_factory=dict)
    _context: int | None = None
    _n_rounds: int = 0

    def run(self) -> bool:
        """Whether it was interrupted. Raises CannotMeasure when the server is lost."""
        try:
            for kind in KINDS:
                found = self._search(kind)
                if found is not None:
                    self._loads[kind] = found
            trained, cells = (read_header(self.model).number("context_length"), self.loaded.settings.pools.long.slot_tokens)
            most = min(cells, trained) if trained else cells  # what a slot of the long pool really has
            self._context = longest_context(
                most, lambda n: self._judged("context", f"{n} tokens", context_load(n, self.round_s)), self._is_over
            )
        except KeyboardInterrupt:
            return True
        return False

    def record(self, provenance: Mapping[str, Any]) -> CapacityRecord:
        host = provenance["host"]
        ttft = {str(t.request_class): t.most for t in self.targets if t.measure == "ttft"}
        return CapacityRecord(
            measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
            host={"cpu": str(host["cpu"]), "cores": int(host["n_cpus_usable"])},
            model=dict(provenance["model"]),
            settings=records.matters(self.loaded.settings),
            targets=[str(target) for target in self.targets],
            interactive=self._loads.get("interactive"),
            background=self._loads.get("background"),
            long=self._loads.get("long"),
            context_tokens=self._context,
            ttft_ms=ttft,
        )

    def _search(self, kind: str) -> Load | None:
        settings = self.loaded.settings
        slots = slots_for(kind, settings)
        if self._is_over():
            self.say(f"{kind}: not measured, the time is over")
            return None
        first = self._guess(kind, slots)
        self.say(f"{kind}: {slots} slots; begins with {first} at once")

        def attempt(n: int) -> Result:
            return self._judged(kind, f"{n} at once", load_of(kind, n, settings, self.round_s))

        return search(first, attempt, slots=slots, until=self._is_over)

    def _guess(self, kind: str, slots: int) -> int:
        """The simulator's, once a first round has shown what steps cost; the slots where it cannot say."""
        try:
            if self.options is None:
                load = load_of("background", max(1, slots // 2), self.loaded.settings, self.round_s)
                self._n_rounds += 1
                source = ScenarioSource(load, load.name, "")
                found, template = calibrated_round(source, self.url, self.seed + self._n_rounds)
                self.options = sim_options(found, template)
            return guess(kind, self.loaded.settings, self.round_s, self.targets, self.options, self.seed)
        except (CannotMeasure, SimulationFailure) as error:
            self.say(f"{kind}: no guess from the simulator ({error})")
            return slots

    def _judged(self, kind: str, what: str, load: Scenario) -> Result:
        self._n_rounds += 1
        done = live_round(ScenarioSource(load, load.name, ""), {OURS: self.url}, self.seed + self._n_rounds)
        result = judge(kind, done["sides"][OURS], self.targets)
        figures = ", ".join(f"{name} -> {value:g}" for name, value in result.figures.items())
        verdict = f"misses {result.missed}" if result.missed else "keeps every target"
        self.say(f"  {kind}, {what}: {verdict} ({figures})")
        return result

    def _is_over(self) -> bool:
        return time.monotonic() > self.until


@contextmanager
def _server(url: str | None, loaded: LoadedSettings) -> Iterator[str]:
    """The address of the server to measure: the one that was named, or one with these settings for as long as it is needed."""
    if url is not None:
        yield base_url(url)
        return
    with TemporaryDirectory(prefix="poise-capacity-") as folder, closing(Server(loaded, {}, Path(folder))) as server:
        yield server.url


def _print(record: CapacityRecord, loaded: LoadedSettings) -> None:
    console = output()
    typer.echo(f"measured {record.measured_at} on {record.host['cpu']}, {record.host['cores']} cores")
    typer.echo(f"targets: {', '.join(record.targets)}")
    table = Table(title="at once", title_justify="left")
    for header in ("load", "keeps every target", "does not", "what gives out there"):
        table.add_column(header, justify="left" if header.startswith(("load", "what")) else "right")
    for kind in KINDS:
        load: Load | None = getattr(record, kind)
        if load is None:
            table.add_row(kind, "not measured", "", "")
        else:
            table.add_row(kind, str(load.at_once), "-" if load.broken is None else str(load.broken), load.missed)
    context = "not measured" if record.context_tokens is None else f"{record.context_tokens} tokens"
    table.add_row("longest context", context, "", "")
    console.print(table)
    limits = Table(title="limits in force", title_justify="left")
    for header in ("setting", "value", "measured", "", "from"):
        limits.add_column(header, justify="right" if header in ("value", "measured") else "left")
    for limit in records.limits(loaded, record):
        measured = "not measured" if limit.measured is None else str(limit.measured)
        limits.add_row(limit.key, str(limit.value), measured, "above" if limit.is_above else "", limit.origin)
    console.print(limits)
