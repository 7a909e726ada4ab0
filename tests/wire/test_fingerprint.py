"""A fingerprint follows a file's contents, and nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from poise.wire.fingerprint import HEAD_BYTES, SAMPLE_BYTES, fingerprint


def sparse(path: Path, n_bytes: int) -> Path:
    with path.open("wb") as file:
        file.truncate(n_bytes)
    return path


def put(path: Path, offset: int, data: bytes = b"x") -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_copy_is_the_same_file(tmp_path: Path) -> None:
    """Neither its name, nor its inode, nor its time matters: a file that was put back is the one it was."""
    first = sparse(tmp_path / "first", 1000)
    put(first, 10, b"GGUF")
    copy = tmp_path / "copy"
    shutil.copyfile(first, copy)
    os.utime(copy, (1, 1))
    assert fingerprint(copy) == fingerprint(first)


@pytest.mark.parametrize("offset", [0, 999, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + SAMPLE_BYTES - 1])
def test_another_byte_of_its_beginning_or_of_a_sample_is_another_file(tmp_path: Path, offset: int) -> None:
    """All of the metadata and the vocabulary, and the weights where they are looked at."""
    path = sparse(tmp_path / "model", HEAD_BYTES + (64 << 20))
    before = fingerprint(path)
    put(path, offset)
    assert fingerprint(path) != before


def test_other_weights_throughout_are_another_file(tmp_path: Path) -> None:
    """A fine-tune has the same metadata, vocabulary and size."""
    path = sparse(tmp_path / "model", HEAD_BYTES + (8 << 20))
    before = fingerprint(path)
    put(path, HEAD_BYTES, b"\1" * (8 << 20))
    assert fingerprint(path) != before


def test_another_size_is_another_file(tmp_path: Path) -> None:
    """As of one that was cut short, or is being written."""
    path = sparse(tmp_path / "model", 5000)
    before = fingerprint(path)
    os.truncate(path, 4999)
    assert fingerprint(path) != before


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        fingerprint(tmp_path / "none")
