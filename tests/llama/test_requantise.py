"""Making a file in another format, once, and finding it again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from poise.llama.choosing import requantise
from poise.llama.choosing.requantise import CannotMake, WeightsFolder
from poise.llama.files.cachefile import file_digest
from poise.llama.files.formats import FORMATS
from poise.llama.files.gguf import read_header
from tests.llama.gguf_files import gguf_bytes, write_gguf

pytestmark = pytest.mark.slow  # names of files carry the library's version, so llama.cpp has to be there

Q8 = FORMATS[1]
DIGEST = "ab" * 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny model.gguf")


def copies(source: Path, *, then: Callable[[Path], None] = lambda _: None) -> Callable[..., None]:
    """Stands in for llama.cpp, which does not convert a file that is no model."""

    def convert(_source: Path, target: Path, _wanted: object, _threads: int) -> None:
        shutil.copyfile(source, target)
        then(target)

    return convert


def test_a_file_is_made_found_and_pruned(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its checksum beside it, in a name that tells source, format and recipe."""
    monkeypatch.setattr(requantise, "_convert", copies(source))
    folder = WeightsFolder()
    path = folder.path(source, DIGEST, Q8)
    assert path.name.startswith("tiny-model-abababababab-q8_0-")
    with folder.locked():
        assert not folder.find(path)
        leftover = folder.folder / ".other.gguf.1.tmp"
        leftover.write_bytes(b"half a file")
        folder.make(read_header(source), path, Q8, 1)
        assert folder.find(path)
        assert not leftover.exists(), "what a dead process left is swept up"
        sidecar = path.with_name(path.name + ".sha256")
        assert sidecar.read_text() == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        old, foreign = (path.with_name(f"tiny-{DIGEST[:12]}-q4_0-00.gguf"), path.with_name("tiny-cdcdcdcdcdcd-q4_0-00.gguf"))
        old.touch()
        foreign.touch()
        folder.prune(DIGEST, keep=path)
    assert sorted(folder.folder.glob("[!.]*")) == sorted([path, sidecar, foreign])


def test_damage_and_a_missing_checksum_are_noticed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A touched file is read again; an untouched one is not."""
    monkeypatch.setattr(requantise, "_convert", copies(source))
    folder = WeightsFolder()
    path = folder.path(source, DIGEST, Q8)
    with folder.locked():
        folder.make(read_header(source), path, Q8, 1)
    assert folder.find(path)
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\x01")
    os.utime(path, ns=(1, 1))
    assert not folder.find(path)
    path.write_bytes(good)
    os.utime(path, ns=(2, 2))
    assert folder.find(path)
    path.with_name(path.name + ".sha256").write_text("")
    assert not folder.find(path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    """So that the source is served."""
    (tmp_path / "file").touch()
    with pytest.raises(CannotMake, match="cannot be written"), WeightsFolder(tmp_path / "file" / "weights").locked():
        pass


def test_a_full_disk_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is seen beforehand or only when writing."""
    folder = WeightsFolder()
    path = folder.path(source, DIGEST, Q8)

    def full(target: Path) -> None:
        raise OSError(28, "No space left on device")

    with folder.locked():
        monkeypatch.setattr(requantise, "_convert", copies(source, then=full))
        with pytest.raises(CannotMake, match="No space left"):
            folder.make(read_header(source), path, Q8, 1)
        usage = shutil.disk_usage(folder.folder)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
        with pytest.raises(CannotMake, match="has 1 MiB free, and 256 are wanted"):
            folder.make(read_header(source), path, Q8, 1)
    assert [entry.name for entry in folder.folder.iterdir()] == [".lock"]


def test_what_is_not_a_whole_model_is_not_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's own refusal, a file that is cut short, and one with other weights."""
    folder = WeightsFolder()
    path = folder.path(source, DIGEST, Q8)
    header = read_header(source)
    with folder.locked():
        foreign = write_gguf(source.with_name("foreign.gguf"), gguf_bytes({"general.architecture": "nonesuch"}))
        with pytest.raises(CannotMake, match=r"cannot convert it to q8_0 \(.*nonesuch"):
            folder.make(read_header(foreign), path, Q8, 1)
        monkeypatch.setattr(requantise, "_convert", copies(source, then=lambda target: os.truncate(target, 300)))
        with pytest.raises(CannotMake, match="not usable"):
            folder.make(header, path, Q8, 1)
        monkeypatch.setattr(requantise, "_convert", copies(source))
        with pytest.raises(CannotMake, match="not all the weights"):
            folder.make(dataclasses.replace(header, n_tensors=7), path, Q8, 1)
    assert [entry.name for entry in folder.folder.iterdir()] == [".lock"]


def test_only_one_works_at_a_time(tmp_path: Path) -> None:
    """The other is told that it waits, and goes on when the first is done."""
    folder = WeightsFolder(tmp_path / "weights")
    waits, order = threading.Event(), []

    def second() -> None:
        with WeightsFolder(tmp_path / "weights").locked(waiting=waits.set):
            order.append("second")

    with folder.locked():
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


def test_the_real_model_is_converted(model_path: Path) -> None:
    """To a file that has all its weights, in the wanted type, and no more bytes than reckoned."""
    folder = WeightsFolder()
    source = read_header(model_path)
    path = folder.path(model_path, file_digest(model_path), Q8)
    with folder.locked():
        folder.make(source, path, Q8, 2)
    made = read_header(path)
    assert set(made.matrix_types) == {8}
    assert made.n_params == source.n_params
    assert made.file_bytes <= Q8.estimated_bytes(source) <= 1.02 * made.file_bytes
    assert made.keys["llama.block_count"] == source.keys["llama.block_count"]
