"""Limits above what was measured, at a start and in `poise doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.commands import doctor
from poise.commands.doctor import Grade
from poise.config import LoadedSettings, load
from poise.gateway import serve
from poise.gateway.supervision import preflight
from poise.llama.fitting.capacity import CapacityRecord, Load, write_record
from tests.llama.gguf_files import write_gguf


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model, for which four requests at once were measured."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    path = write_gguf(tmp_path / "tiny.gguf")
    four = Load(4, 5, 12, 1.0)
    record = CapacityRecord("2026-11-26", {}, {}, {}, [], four, four, four, 8192, {})
    write_record(loaded(path).settings, path, record)
    return path


def loaded(model: Path, **changes: object) -> LoadedSettings:
    given = {key.replace("__", "."): value for key, value in changes.items()}
    return load(None, {}, {"model.path": str(model)} | given)


def test_a_start_warns_or_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text; a start within what was measured says nothing."""
    serve._warn(preflight._check(loaded(model)))
    assert capsys.readouterr().err == ""
    serve._warn(preflight._check(loaded(model, classes__background__slots_max=5)))
    warning = capsys.readouterr().err.strip()
    assert warning.startswith("poise: warning: classes.background.slots_max = 5 (command line")
    changes = {"classes.background.slots_max": 5, "server.require_measured": True}
    with pytest.raises(preflight.CannotStart) as refused:
        preflight._check(loaded(model).varied(changes))
    assert str(refused.value) == warning.removeprefix("poise: warning: ")


@pytest.mark.parametrize(
    ("changes", "grade", "text"),
    [
        ({}, Grade.OK, "measured 2026-11-26; no limit is set above it"),
        ({"classes__background__slots_max": 5}, Grade.WARNING, "classes.background.slots_max = 5 (command line"),
        ({"engine__threads": 1}, Grade.OK, "not measured; `poise capacity` tells"),
        ({"engine__threads": 1, "server__require_measured": True}, Grade.BAD, "nothing was measured on this host"),
    ],
)
def test_doctor(model: Path, changes: dict[str, object], grade: Grade, text: str) -> None:
    """One finding, with what to do where something is above."""
    (finding,) = doctor._capacity(loaded(model, **changes))
    assert finding.grade is grade
    assert text in finding.text
    assert (finding.remedy != "") == (grade is not Grade.OK)
