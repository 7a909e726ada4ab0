"""What an engine leaves when it dies is bounded in files and bytes, and nothing that fails there loses its last words."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from poise.engine import dumps
from poise.engine.dumps import MOST_FILES, keep_journal


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def older(folder: Path, n: int, size: int = 10) -> None:
    """Journals of engines before, the first one the oldest."""
    folder.mkdir(exist_ok=True)
    for i in range(n):
        path = folder / f"engine-journal-{i}.jsonl"
        path.write_bytes(b"x" * size)
        os.utime(path, ns=(i, i))


def test_a_journal_is_left_for_its_owner_alone(tmp_path: Path) -> None:
    told = keep_journal(tmp_path / "state", ["a", "b"])
    path = tmp_path / "state" / f"engine-journal-{os.getpid()}.jsonl"
    assert told == f"journal in {path}"
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("a\nb\n", 0o600)


def test_a_crash_loop_does_not_fill_a_disk_with_files(tmp_path: Path) -> None:
    """The oldest go first, and it is said how many; what is not a journal stays."""
    older(tmp_path, MOST_FILES + 1)
    (tmp_path / "capacity.json").write_text("{}")
    told = keep_journal(tmp_path, ["a"])
    kept = [f"engine-journal-{i}.jsonl" for i in range(2, MOST_FILES + 1)]
    assert left(tmp_path) == sorted([*kept, "capacity.json", f"engine-journal-{os.getpid()}.jsonl"])
    assert told.endswith("; older ones deleted: 2")


def test_nor_with_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "MOST_BYTES", 100)
    older(tmp_path, 3, size=40)
    keep_journal(tmp_path, ["x" * 29])
    assert left(tmp_path) == sorted(["engine-journal-2.jsonl", f"engine-journal-{os.getpid()}.jsonl"])


def test_a_journal_that_is_too_large_has_its_newest_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "MOST_BYTES", 20)
    keep_journal(tmp_path, ["oldest", "older", "new"])
    assert (tmp_path / f"engine-journal-{os.getpid()}.jsonl").read_text() == "new\n"


@pytest.mark.parametrize("call", ["write_bytes", "mkdir", "touch", "glob", "unlink"])
def test_what_fails_is_told_and_nothing_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """A part of a file is not left behind."""
    older(tmp_path, MOST_FILES)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, call, fail)
    assert "could not be written: [Errno 28] No space left on device" in keep_journal(tmp_path, ["a"])
    monkeypatch.undo()
    assert f"engine-journal-{os.getpid()}.jsonl" not in left(tmp_path)
