"""The record of what was measured, and what is said of limits above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.config import LoadedSettings, load
from poise.llama.fitting import capacity
from poise.llama.fitting.capacity import CapacityRecord, Load, limits, problems, read_record, write_record

SLOTS = "classes.interactive.slots_max"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    return path


def loaded(*, required: bool = False, **changes: object) -> LoadedSettings:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return load(None, {}, given | {"server.require_measured": required})


def record(at_once: int = 9, slots: int = 12) -> CapacityRecord:
    one = Load(at_once, at_once + 1, slots, per_s=2.0)
    return CapacityRecord(
        "2026-11-26T05:00:00+00:00",
        {"cpu": "x", "cores": 2},
        {"path": "m"},
        {},
        [],
        interactive=one,
        background=one,
        long=Load(2, 3, 2),
        context_tokens=4096,
        ttft_ms={"interactive": 2000.0, "background": 60_000.0},
    )


def test_a_limit_that_was_raised_is_named(model: Path) -> None:
    """With its value, where it was set, what was measured and the command; a default is no raise."""
    assert problems(loaded(pools__short__slots=24), model) == []
    write_record(loaded().settings, model, record())
    found = problems(loaded(pools__short__slots=24, classes__interactive__slots_max=20), model)
    assert len(found) == 2
    assert found[1].startswith(f"{SLOTS} = 20 (command line --set {SLOTS}) is above the interactive requests at once")
    assert found[1].endswith(f"(measured here: 9); set at most 9, or measure with it: poise capacity --set {SLOTS}=20")
    assert problems(loaded(), model) == []
    assert problems(loaded(classes__interactive__slots_max=9), model) == []


@pytest.mark.parametrize(
    ("key", "kept", "above"),
    [
        ("pools.short.slots", 9, 10),
        ("pools.long.slots", 2, 3),
        ("pools.long.slot_tokens", 4096, 8192),
        ("classes.interactive.slots_max", 9, 10),
        ("classes.interactive.queue_max", 4, 5),  # two a second, and a target of two seconds
        ("classes.background.queue_max", 120, 121),
        ("classes.background.slots_max", 9, 10),
        ("classes.background.heavy_max", 1, None),
        ("classes.interactive.max_context_tokens", 4096, 4097),
    ],
)
def test_every_limit_has_its_figure(model: Path, key: str, kept: int, above: int | None) -> None:
    """At the figure nothing is said, above it one line."""
    write_record(loaded().settings, model, record())
    assert problems(load(None, {}, {key: kept}), model) == []
    if above is not None:
        (line,) = problems(load(None, {}, {key: above}), model)
        assert line.startswith(f"{key} = {above} ")


def test_more_at_once_than_slots_is_no_measure_of_more_slots() -> None:
    """Twenty at once over twelve slots kept the targets: twelve slots were measured."""
    found = {limit.key: limit for limit in limits(loaded(), record(at_once=20, slots=12))}
    assert found[SLOTS].measured == 12
    assert not found[SLOTS].is_above


def test_required_and_not_measured(model: Path) -> None:
    """Without a record, and with one of another host, model or engine, the start is refused; otherwise nothing is said."""
    line = "server.require_measured: nothing was measured on this host with this model and engine; run poise capacity, "
    assert problems(loaded(required=True), model) == [line + "or take the setting away"]
    write_record(loaded().settings, model, record())
    assert problems(loaded(required=True), model) == []
    assert problems(loaded(required=True, engine__threads=1), model) != []
    model.write_bytes(b"other weights")
    assert problems(loaded(required=True), model) != []
    assert problems(loaded(), model) == []


def test_what_was_not_measured_is_above(model: Path) -> None:
    """A record of an interrupted run speaks of its part only."""
    part = CapacityRecord("t", {}, {}, {}, [], interactive=Load(9, 10, 12))
    write_record(loaded().settings, model, part)
    (line,) = problems(load(None, {}, {"pools.long.slots": 3}), model)
    assert "(nothing was measured); measure with it: poise capacity --set pools.long.slots=3" in line


def test_records_are_kept_by_model_and_engine(model: Path, tmp_path: Path) -> None:
    """One file, replaced as a whole; a damaged one has no record."""
    one, other = loaded().settings, loaded(engine__threads=1).settings
    write_record(one, model, record(9))
    file = write_record(other, model, record(3))
    assert file == capacity.record_file() == tmp_path / "state" / "poise" / "capacity.json"
    assert read_record(one, model) == record(9)
    assert read_record(other, model) == record(3)
    file.write_text("{")
    assert read_record(one, model) is None
    file.write_text('{"a": 1}')
    assert read_record(one, model) is None
