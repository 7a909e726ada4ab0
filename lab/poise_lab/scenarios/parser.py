"""From a scenario file to a `Scenario`: every key, its type and its range. What is missing, wrong or unknown is one line."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, cast, get_args

from poise_lab.scenarios.files import InputError, explained
from poise_lab.scenarios.model import ARRIVAL_KINDS, Arrival, Client, Event, Length, Reading, RequestClass, Scenario, Targets
from poise_lab.scenarios.trace import TOKENS_MAX, Trace, load_trace

CLASSES = get_args(RequestClass)
TARGET_NAMES = tuple(field.name for field in fields(Targets) if field.name != "request_class")
FOLDER = Path("scenarios")
_TARGET = re.compile(r"([a-z]+)\.([a-z0-9_]+)=([0-9.]+)")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Rule:
    """What may stand at a key, in words and as a check. Without a default the key has to be there."""

    expected: str
    is_right: Callable[[Any], object]
    default: Any = ...
    is_float: bool = False


def integer(low: int, high: int, default: Any = ...) -> Rule:
    return Rule(f"an integer from {low} to {high}", lambda value: type(value) is int and low <= value <= high, default)


def number(low: float, high: float, default: Any = ...) -> Rule:
    # A comparison with nan is false, so nan is out of range like any other.
    expected = f"a number from {low:g} to {high:g}"
    return Rule(expected, lambda value: type(value) in (int, float) and low <= value <= high, default, is_float=True)


def choice(*allowed: str) -> Rule:
    return Rule(" or ".join(f'"{option}"' for option in allowed), lambda value: value in allowed)


NAME = Rule(
    "1 to 64 of a-z, 0-9, '-' and '_', the first a letter or digit",  # it stands in a header and in tables
    lambda value: isinstance(value, str) and _NAME.fullmatch(value),
)
FLAG = Rule("true or false", lambda value: isinstance(value, bool), False)
TABLE = Rule("a table", lambda value: isinstance(value, dict))
OPTIONAL_TABLE = Rule(TABLE.expected, TABLE.is_right, None)
TABLES = Rule("one or more [[tables]]", lambda value: type(value) is list and value and all(map(TABLE.is_right, value)))
TOKENS = integer(1, TOKENS_MAX)
LENGTH = Rule(TOKENS.expected, lambda value: isinstance(value, dict) or TOKENS.is_right(value))
OPTIONAL_LENGTH = Rule(LENGTH.expected, LENGTH.is_right, None)
RATE = (0.001, 10_000.0)

SCENARIO = {
    "name": NAME,
    "description": Rule("a string", lambda value: isinstance(value, str)),
    "duration_s": number(0.01, 86_400.0),
    "drain_s": number(0.0, 3_600.0),
    "warmup_requests": integer(0, 1_000, 0),
    "clients": TABLES,
    "events": Rule(TABLES.expected, TABLES.is_right, ()),
    "targets": OPTIONAL_TABLE,
}
CLIENT = {
    "name": NAME,
    "tenant": NAME,
    "class": choice(*CLASSES),
    "count": integer(1, 10_000, 1),
    "arrival": TABLE,
    "prompt_tokens": LENGTH,
    "output_tokens": LENGTH,
    "cancel_after_tokens": OPTIONAL_LENGTH,
    "requests": integer(1, 1_000_000, None),
    "temperature": number(0.0, 2.0, 0.8),
    "shared_prefix_tokens": integer(0, TOKENS_MAX, 0),
    "turns": integer(1, 1_000, 1),
    "context_tokens": OPTIONAL_LENGTH,
    "cancel_after_ms": OPTIONAL_LENGTH,
    "cancel_before_first_token": FLAG,
    "cancel_share": number(0.0, 1.0, 1.0),
    "read_rate": OPTIONAL_TABLE,
    "malformed_share": number(0.0, 1.0, 0.0),
    "fresh_tenants": FLAG,
}
ARRIVALS = {
    "poisson": {"rate_per_s": number(*RATE)},
    "closed": {"think_s": number(0.0, 3_600.0, 0.0), "think_max_s": number(0.0, 3_600.0, None), "rate_per_s": number(*RATE, 0.0)},
    "trace": {
        "file": Rule("a string", lambda value: isinstance(value, str), None),
        "time_scale": number(1e-6, 1e6, 1.0),
        "start_s": number(0.0, 1e9, 0.0),
        "limit": integer(1, 5_000_000, None),
    },
}
READINGS = {
    "tokens_per_s": {"tokens_per_s": number(0.01, 1e6)},
    "bytes_per_s": {"bytes_per_s": number(1.0, 1e9)},
    "stuck_after_tokens": {"stuck_after_tokens": integer(0, TOKENS_MAX), "stuck_s": number(0.0, 86_400.0, None)},
}
EVENT = {"kind": choice("kill_engine"), "at_s": number(0.0, 86_400.0)}
TARGETS = dict.fromkeys(TARGET_NAMES, number(0.001, 1e9, None))


class Table:
    """A TOML table that is read key by key."""

    def __init__(self, source: str, path: str, values: Mapping[str, Any]) -> None:
        self.values = values
        self._source = source
        self._path = path
        self._known: dict[str, None] = {}

    def get(self, key: str, rule: Rule) -> Any:
        """The value of a key, which is known from then on. Raises InputError."""
        self._known[key] = None
        value = self.values.get(key, rule.default)
        if value is ...:
            # A misspelt key is the likeliest reason for a missing one: both are in the message.
            given = f"expected {rule.expected}; given here: {', '.join(self.values) or 'nothing'}"
            raise InputError(f"{self._source}: {self._path}{key} is missing: {given}")
        if key in self.values and not rule.is_right(value):
            raise self.error(key, f"expected {rule.expected}")
        return float(value) if rule.is_float and value is not None else value

    def read(self, rules: Mapping[str, Rule]) -> dict[str, Any]:
        """The values of these keys. With those that were read before, no other may stand here. Raises InputError."""
        found = {key: self.get(key, rule) for key, rule in rules.items()}
        for key in self.values:
            if key not in self._known:
                raise self.error(key, f"unknown key; known here: {', '.join(self._known)}")
        return found

    def table(self, key: str) -> "Table":
        return Table(self._source, f"{self._path}{key}.", self.values[key])

    def tables(self, key: str) -> "list[Table]":
        rows = enumerate(self.values.get(key, ()))
        return [Table(self._source, f"{self._path}{key}[{index}].", row) for index, row in rows]

    def error(self, key: str, problem: str) -> InputError:
        """What to raise for a value that cannot be used."""
        value = repr(self.values.get(key))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return InputError(f"{self._source}: {self._path}{key} = {shown}: {problem}")

    def lacks(self, expected: str) -> InputError:
        """What to raise for a table without something."""
        given = ", ".join(self.values) or "nothing"
        return InputError(f"{self._source}: {self._path.rstrip('.')}: expected {expected}; given here: {given}")


def find_scenario(name: str) -> Path:
    """The file `name`, or the one of that name in ./scenarios. Raises InputError."""
    for path in (Path(name), FOLDER / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.toml"))) or "none"
    raise InputError(f"no scenario {name!r}: neither a file nor in ./{FOLDER}, where there are: {known}")


def load_scenario(path: Path, trace: Path | None = None) -> Scenario:
    """Reads and checks a scenario file. `trace` is for those clients that follow a trace and name no file. Raises
    InputError with one line."""
    with explained(path):
        text = path.read_text(encoding="utf-8")
    return parse_scenario(text, str(path), path.parent, trace)


def parse_scenario(text: str, source: str, folder: Path = Path(), trace: Path | None = None) -> Scenario:
    """The scenario that `text` describes; `source` names it in errors, traces are looked for from `folder` on."""
    with explained(source):
        table = Table(source, "", tomllib.loads(text))
    read = cache(load_trace)

    def find_trace(file: str | None) -> Trace:
        if file is None and trace is None:
            raise InputError(f"{source}: names no trace: give one with --trace FILE, or as arrival.file")
        return read(folder / file if file is not None else cast(Path, trace))

    values = table.read(SCENARIO)
    values["clients"] = tuple(_client(client, find_trace) for client in table.tables("clients"))
    values["events"] = tuple(Event(**event.read(EVENT)) for event in table.tables("events"))
    values["targets"] = _targets(table.table("targets")) if "targets" in table.values else ()
    scenario = Scenario(**values)
    names = [client.name for client in scenario.clients]
    for index, client in enumerate(table.tables("clients")):
        if names[index] in names[:index]:
            raise client.error("name", "another client has this name")
    return scenario


def parse_target(text: str) -> Targets:
    """A target of one class on the command line, as in interactive.ttft_ms=800. Raises InputError."""
    found = _TARGET.fullmatch(text)
    try:
        if found is None or found[1] not in CLASSES or found[2] not in TARGET_NAMES or not 0 < float(found[3]) <= 1e9:
            raise ValueError
    except ValueError:
        raise InputError(
            f"target {text!r}: expected CLASS.NAME=MILLISECONDS, CLASS of {', '.join(CLASSES)}, NAME of {', '.join(TARGET_NAMES)}"
        ) from None
    return Targets(cast(RequestClass, found[1]), **{found[2]: float(found[3])})


def _client(table: Table, find_trace: Callable[[str | None], Trace]) -> Client:
    values = table.read(CLIENT)
    arrival = _arrival(table.table("arrival"), find_trace)
    for key in ("prompt_tokens", "output_tokens", "context_tokens", "cancel_after_tokens", "cancel_after_ms"):
        is_traced = arrival.kind == "trace" and key in ("prompt_tokens", "output_tokens")
        if isinstance(values[key], dict):
            values[key] = _length(table.table(key), is_traced)
        elif values[key] is not None:
            values[key] = Length("constant", values[key], values[key])
    reading = _reading(table.table("read_rate")) if values.pop("read_rate") is not None else None
    values |= {"arrival": arrival, "request_class": values.pop("class"), "n_requests_max": values.pop("requests")}
    client = Client(reading=reading, **values)
    if client.cancel_before_first_token and client.cancel_after_ms is None:
        problem = "needs cancel_after_ms, the time at which the client loses patience"
        raise table.error("cancel_before_first_token", problem)
    return client


def _arrival(table: Table, find_trace: Callable[[str | None], Trace]) -> Arrival:
    kind = table.get("kind", choice(*ARRIVAL_KINDS))
    values = table.read(ARRIVALS[kind])
    if (most_s := values.get("think_max_s")) is not None and most_s < values["think_s"]:
        raise table.error("think_max_s", "expected at least think_s")
    return Arrival(kind, **values if kind != "trace" else values | {"trace": find_trace(values.pop("file"))})


def _length(table: Table, is_traced: bool) -> Length:
    kind = table.get("kind", choice("uniform", "lognormal", *(("trace",) if is_traced else ())))
    low = table.get("low", integer(1, TOKENS_MAX, 1 if kind == "trace" else ...))
    high = table.get("high", integer(low, TOKENS_MAX, TOKENS_MAX if kind == "trace" else ...))
    more = {
        "uniform": {},
        "lognormal": {"median": number(low, high), "sigma": number(0.0, 10.0)},
        "trace": {"scale": number(1e-6, 1e6, 1.0)},
    }
    return Length(kind, low, high, **table.read(more[kind]))


def _reading(table: Table) -> Reading:
    """One of tokens_per_s, bytes_per_s and stuck_after_tokens, the last perhaps with stuck_s."""
    kinds = [key for key in READINGS if key in table.values]
    if len(kinds) != 1:
        raise table.lacks("exactly one of tokens_per_s, bytes_per_s and stuck_after_tokens")
    values = table.read(READINGS[kinds[0]])
    if kinds == ["stuck_after_tokens"]:
        return Reading("stuck", after_tokens=values["stuck_after_tokens"], stuck_s=values["stuck_s"])
    return Reading("tokens" if kinds == ["tokens_per_s"] else "bytes", per_s=values[kinds[0]])


def _targets(table: Table) -> tuple[Targets, ...]:
    given = table.read(dict.fromkeys(CLASSES, OPTIONAL_TABLE))
    found = [Targets(name, **table.table(name).read(TARGETS)) for name in CLASSES if given[name] is not None]
    for one in found:
        if one == Targets(one.request_class):
            raise table.table(one.request_class).lacks(f"one or more of {', '.join(TARGET_NAMES)}")
    return tuple(found)
