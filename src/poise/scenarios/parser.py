"""From a scenario file to a `Scenario`: every key, its type and its range."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import cast, get_args

from poise.scenarios.model import (
    ARRIVAL_KINDS,
    Arrival,
    ArrivalKind,
    Client,
    Event,
    Length,
    LengthKind,
    Reading,
    RequestClass,
    Scenario,
    Targets,
)
from poise.scenarios.table import ScenarioError, Table
from poise.scenarios.trace import TOKENS_MAX, Trace, load_trace

CLASSES = get_args(RequestClass)
TARGET_NAMES = tuple(field.name for field in fields(Targets) if field.name != "request_class")
FOLDER = Path("scenarios")
_TARGET = re.compile(r"([a-z]+)\.([a-z0-9_]+)=([0-9.]+)")


def find_scenario(name: str) -> Path:
    """The file `name`, or the one of that name in ./scenarios. Raises ScenarioError."""
    for path in (Path(name), FOLDER / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml"))) or "none"
    raise ScenarioError(f"no scenario {name!r}: neither a file nor in ./{FOLDER}, where there are: {known}")


def load_scenario(path: Path, trace: Path | None = None) -> Scenario:
    """Reads and checks a scenario file. `trace` is for those clients that follow a trace and name no file. Raises
    ScenarioError with one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: is not UTF-8: byte {error.start}") from error
    return parse_scenario(text, str(path), path.parent, trace)


def parse_scenario(text: str, source: str, folder: Path = Path(), trace: Path | None = None) -> Scenario:
    """The scenario that `text` describes; `source` names it in errors, traces are looked for from `folder` on."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{source}: not valid TOML: {error}") from error
    table = Table(source, "", values)
    traces = _Traces(source, folder, trace)
    scenario = Scenario(
        name=table.name("name"),
        description=table.text("description"),
        duration_s=table.number("duration_s", 0.01, 86_400.0),
        drain_s=table.number("drain_s", 0.0, 3_600.0),
        warmup_requests=table.integer("warmup_requests", 0, 1_000, default=0),
        clients=tuple(_client(client, traces) for client in table.tables("clients")),
        events=tuple(_event(event) for event in (table.tables("events") if "events" in values else [])),
        targets=_targets(table.optional_table("targets")),
    )
    table.optional("events")
    table.reject_unknown()
    seen: set[str] = set()
    for index, client in enumerate(scenario.clients):
        if client.name in seen:
            raise ScenarioError(f"{source}: clients[{index}].name = {client.name!r}: another client has this name")
        seen.add(client.name)
    return scenario


def parse_target(text: str) -> Targets:
    """A target of one class on the command line, as in interactive.ttft_ms=800. Raises ScenarioError."""
    found = _TARGET.fullmatch(text)
    try:
        if found is None or found[1] not in CLASSES or found[2] not in TARGET_NAMES or not 0 < float(found[3]) <= 1e9:
            raise ValueError
    except ValueError:
        raise ScenarioError(
            f"target {text!r}: expected CLASS.NAME=MILLISECONDS, CLASS of {', '.join(CLASSES)}, "
            f"NAME of {', '.join(TARGET_NAMES)}"
        ) from None
    return Targets(cast(RequestClass, found[1]), **{found[2]: float(found[3])})


class _Traces:
    """Finds the traces of a file's clients, and reads each once."""

    def __init__(self, source: str, folder: Path, given: Path | None) -> None:
        self._source = source
        self._folder = folder
        self._given = given
        self._read: dict[Path, Trace] = {}

    def find(self, table: Table) -> Trace:
        if "file" in table.values:
            path = self._folder / table.text("file")
        elif self._given is not None:
            path = self._given
        else:
            raise ScenarioError(f"{self._source}: names no trace: give one with --trace FILE, or as arrival.file")
        table.optional("file")
        if path not in self._read:
            self._read[path] = load_trace(path)
        return self._read[path]


def _client(table: Table, traces: _Traces) -> Client:
    arrival = _arrival(table.table("arrival"), traces)
    is_traced = arrival.kind == "trace"
    client = Client(
        name=table.name("name"),
        tenant=table.name("tenant"),
        request_class=cast(RequestClass, table.choice("class", CLASSES)),
        count=table.integer("count", 1, 10_000, default=1),
        arrival=arrival,
        prompt_tokens=_length(table, "prompt_tokens", is_traced=is_traced),
        output_tokens=_length(table, "output_tokens", is_traced=is_traced),
        cancel_after_tokens=_optional_length(table, "cancel_after_tokens"),
        n_requests_max=table.integer("requests", 1, 1_000_000) if "requests" in table.values else None,
        temperature=table.number("temperature", 0.0, 2.0, default=0.8),
        shared_prefix_tokens=table.integer("shared_prefix_tokens", 0, TOKENS_MAX, default=0),
        turns=table.integer("turns", 1, 1_000, default=1),
        cancel_after_ms=_optional_length(table, "cancel_after_ms"),
        cancel_before_first_token=table.boolean("cancel_before_first_token", default=False),
        cancel_share=table.number("cancel_share", 0.0, 1.0, default=1.0),
        reading=_reading(table.optional_table("read_rate")),
        malformed_share=table.number("malformed_share", 0.0, 1.0, default=0.0),
        fresh_tenants=table.boolean("fresh_tenants", default=False),
    )
    if client.cancel_before_first_token and client.cancel_after_ms is None:
        raise table.error(
            "cancel_before_first_token", "needs cancel_after_ms, the time at which the client loses patience"
        )
    for key in ("requests", "cancel_after_tokens", "cancel_after_ms"):
        table.optional(key)
    table.reject_unknown()
    return client


def _arrival(table: Table, traces: _Traces) -> Arrival:
    kind = cast(ArrivalKind, table.choice("kind", ARRIVAL_KINDS))
    if kind == "poisson":
        arrival = Arrival(kind, rate_per_s=table.number("rate_per_s", 0.001, 10_000.0))
    elif kind == "trace":
        arrival = Arrival(
            kind,
            trace=traces.find(table),
            time_scale=table.number("time_scale", 1e-6, 1e6, default=1.0),
            start_s=table.number("start_s", 0.0, 1e9, default=0.0),
            limit=table.integer("limit", 1, 5_000_000) if "limit" in table.values else None,
        )
        table.optional("limit")
    else:
        think_s = table.number("think_s", 0.0, 3_600.0, default=0.0)
        rate_per_s = table.number("rate_per_s", 0.001, 10_000.0) if "rate_per_s" in table.values else 0.0
        arrival = Arrival(kind, rate_per_s=rate_per_s, think_s=think_s)
        table.optional("rate_per_s")
    table.reject_unknown()
    return arrival


def _optional_length(parent: Table, key: str) -> Length | None:
    return _length(parent, key) if key in parent.values else None


def _length(parent: Table, key: str, *, is_traced: bool = False) -> Length:
    if not isinstance(parent.values.get(key), dict):
        tokens = parent.integer(key, 1, TOKENS_MAX)
        return Length("constant", tokens, tokens)
    table = parent.table(key)
    kinds = ("uniform", "lognormal", *(("trace",) if is_traced else ()))
    kind = cast(LengthKind, table.choice("kind", kinds))
    low = table.integer("low", 1, TOKENS_MAX, default=1 if kind == "trace" else None)
    high = table.integer("high", low, TOKENS_MAX, default=TOKENS_MAX if kind == "trace" else None)
    if kind == "uniform":
        length = Length(kind, low, high)
    elif kind == "trace":
        length = Length(kind, low, high, scale=table.number("scale", 1e-6, 1e6, default=1.0))
    else:
        median = table.number("median", low, high)
        length = Length(kind, low, high, median, table.number("sigma", 0.0, 10.0))
    table.reject_unknown()
    return length


def _reading(table: Table | None) -> Reading | None:
    """One of tokens_per_s, bytes_per_s and stuck_after_tokens, the last perhaps with stuck_s."""
    if table is None:
        return None
    kinds = [key for key in ("tokens_per_s", "bytes_per_s", "stuck_after_tokens") if key in table.values]
    if kinds == ["tokens_per_s"]:
        reading = Reading("tokens", per_s=table.number("tokens_per_s", 0.01, 1e6))
    elif kinds == ["bytes_per_s"]:
        reading = Reading("bytes", per_s=table.number("bytes_per_s", 1.0, 1e9))
    elif kinds == ["stuck_after_tokens"]:
        stuck_s = table.number("stuck_s", 0.0, 86_400.0) if "stuck_s" in table.values else None
        table.optional("stuck_s")
        reading = Reading("stuck", after_tokens=table.integer("stuck_after_tokens", 0, TOKENS_MAX), stuck_s=stuck_s)
    else:
        raise table.missing("exactly one of tokens_per_s, bytes_per_s and stuck_after_tokens")
    table.reject_unknown()
    return reading


def _event(table: Table) -> Event:
    table.choice("kind", ("kill_engine",))
    event = Event("kill_engine", table.number("at_s", 0.0, 86_400.0))
    table.reject_unknown()
    return event


def _targets(table: Table | None) -> tuple[Targets, ...]:
    if table is None:
        return ()
    found = []
    for name in CLASSES:
        own = table.optional_table(name)
        if own is None:
            continue
        values = {key: own.number(key, 0.001, 1e9) for key in TARGET_NAMES if key in own.values}
        for key in TARGET_NAMES:
            own.optional(key)
        own.reject_unknown()
        if not values:
            raise own.missing(f"one or more of {', '.join(TARGET_NAMES)}")
        found.append(Targets(cast(RequestClass, name), **values))
    table.reject_unknown()
    return tuple(found)
