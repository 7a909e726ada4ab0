"""How much load this host was measured to take: the record of `poise capacity`, and the limits of a start held against it.

A record counts for one host, model and engine (CPU, cores, the file's SHA-256, llama.cpp, threads, GPU layers, KV type,
weights). A limit that the operator has set, in a file, the environment, on the command line or with a profile, must not be
above what the record has; poise's own defaults are no raise, `poise capacity show` lists them beside the figures."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import msgspec

from poise.config import LoadedSettings, Settings
from poise.config.paths import state_dir
from poise.llama.binding import library
from poise.llama.choosing.measure import cpu_name, library_versions
from poise.llama.files.cachefile import file_digest, read_entries, write_text

COMMAND = "poise capacity"
CLASSES = ("interactive", "background")


class Load(msgspec.Struct, frozen=True):
    """One kind of load: the most at once that kept every target, and the least that did not; 0: nothing did, None: nothing broke.

    slots    that the server had for it: more at once than that wait for their turn, so no more slots than these were measured
    per_s    requests answered each second at the most that kept the targets
    figures  what each target came to there; `missed` says what gave out above it"""

    at_once: int
    broken: int | None = None
    slots: int = 0
    per_s: float = 0.0
    figures: dict[str, float] = {}
    missed: str = ""


class CapacityRecord(msgspec.Struct, frozen=True):
    """What was measured. What is None was not. `context_tokens`: the longest context that was answered beside a chat."""

    measured_at: str
    host: dict[str, str | int]
    model: dict[str, str]
    settings: dict[str, str | int | float | bool]
    targets: list[str]
    interactive: Load | None = None
    background: Load | None = None
    long: Load | None = None
    context_tokens: int | None = None
    ttft_ms: dict[str, float] = {}
    """By class: the target of TTFT that a full queue has to keep."""


@dataclass(frozen=True, slots=True)
class SetLimit:
    """A limit beside what was measured for it; `measured` None: nothing was."""

    key: str
    value: int
    origin: str
    measured: int | None
    what: str

    @property
    def is_above(self) -> bool:
        return self.measured is None or self.value > self.measured

    @property
    def is_set(self) -> bool:
        """By the operator; what a default grew to is none of it."""
        return not self.origin.startswith("default")

    @property
    def text(self) -> str:
        found = "nothing was measured" if self.measured is None else f"measured here: {self.measured}"
        remedy = f"set at most {self.measured}, or measure" if self.measured else "measure"
        again = f"{COMMAND} --set {self.key}={self.value}"
        return f"{self.key} = {self.value} ({self.origin}) is above {self.what} ({found}); {remedy} with it: {again}"


def record_file() -> Path:
    return state_dir() / "capacity.json"


def identity(settings: Settings, model: Path) -> str:
    """Everything that makes a record count for a start. Raises OSError, or EngineLibraryError."""
    host = [cpu_name(), len(os.sched_getaffinity(0))]
    parts = [*host, file_digest(model), library_versions(library.load()), list(matters(settings).values())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def matters(settings: Settings) -> dict[str, str | int | float | bool]:
    """Settings on which every figure depends."""
    engine = settings.engine
    return {
        "engine.threads": engine.threads,
        "engine.gpu_layers": engine.gpu_layers,
        "engine.kv_type": engine.kv_type,
        "model.weights": settings.model.weights,
    }


def write_record(settings: Settings, model: Path, record: CapacityRecord) -> Path:
    """Adds or replaces the record of this host, model and engine, in one go. Raises OSError."""
    file = record_file()
    entries = read_entries(file) | {identity(settings, model): msgspec.to_builtins(record)}
    write_text(file, json.dumps(entries, indent=1) + "\n")
    return file


def read_record(settings: Settings, model: Path) -> CapacityRecord | None:
    """The record that counts for a start with these settings. A damaged file has none."""
    entries = read_entries(record_file())
    if not entries:
        return None  # and the model's file need not be read for its digest
    try:
        return msgspec.convert(entries.get(identity(settings, model)), CapacityRecord)
    except (msgspec.ValidationError, OSError):
        return None


def limits(loaded: LoadedSettings, record: CapacityRecord | None) -> list[SetLimit]:
    """Every limit that a record can speak of, in the order of the settings."""
    values = ((key, attrgetter(key)(loaded.settings), *found) for key, *found in _measured(record))
    return [
        SetLimit(key, value, loaded.origins[key], measured, what)
        for key, value, measured, what in values
        if value or not key.endswith("max_context_tokens")  # 0: what a slot holds
    ]


def problems(loaded: LoadedSettings, model: Path) -> list[str]:
    """A line for each limit that is set above what was measured. Without a record there is one only if one is required."""
    record = read_record(loaded.settings, model)
    if record is None:
        if not loaded.settings.server.require_measured:
            return []
        found = "nothing was measured on this host with this model and engine"
        return [f"server.require_measured: {found}; run {COMMAND}, or take the setting away"]
    return [limit.text for limit in limits(loaded, record) if limit.is_set and limit.is_above]


def _measured(record: CapacityRecord | None) -> Iterator[tuple[str, int | None, str]]:
    """The key of each limit, the figure, and what it is."""
    loads: Mapping[str, Load | None] = {name: getattr(record, name, None) for name in (*CLASSES, "long")}
    slots = {name: min(load.at_once, load.slots) if load is not None else None for name, load in loads.items()}
    short = [n for name in CLASSES if (n := slots[name]) is not None]
    longest = record.context_tokens if record is not None else None
    of_long = (slots["long"], "the long prompts at once beside which the targets are kept")
    of_context = (longest, "the longest context that was answered beside a chat")
    yield "pools.short.slots", max(short) if short else None, "the slots at which the targets of a class are kept"
    yield "pools.long.slots", *of_long
    yield "pools.long.slot_tokens", *of_context
    for name in CLASSES:
        load, waiting = loads[name], None
        if load is not None and record is not None:
            waiting = int(load.per_s * record.ttft_ms.get(name, 0.0) / 1000)
        key = f"classes.{name}"
        yield f"{key}.queue_max", waiting, f"the {name} requests that can wait until the last one's TTFT target is over"
        yield f"{key}.slots_max", slots[name], f"the {name} requests at once that keep the targets"
        yield f"{key}.heavy_max", *of_long
        yield f"{key}.max_context_tokens", *of_context
