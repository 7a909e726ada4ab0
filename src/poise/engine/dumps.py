"""What an engine that dies leaves on the disk: its flight recorder, in a few files at most; its last words survive a full disk.

A crash loop writes one file each time. The newest MOST_FILES are kept, of at most MOST_BYTES together; older ones go first. A
journal that is too large loses its oldest lines."""

import os
from collections.abc import Iterable
from pathlib import Path

MOST_FILES = 8
MOST_BYTES = 128 << 20
"""Of all files together; one may have half of them."""
PATTERN = "engine-journal-*.jsonl"


def keep_journal(folder: Path, lines: Iterable[str]) -> str:
    """Write a journal; returns where it is, or why it is nowhere, as a part of a sentence. Raises nothing."""
    try:
        data = _bounded(list(lines))
        dropped = _make_room(folder, len(data))
        path = _write(folder, data)
    except Exception as error:
        return f"the journal could not be written: {error}"
    return f"journal in {path}" + (f"; older ones deleted: {dropped}" if dropped else "")


def _bounded(lines: list[str]) -> bytes:
    """The newest lines, whole ones."""
    data = "".join(f"{line}\n" for line in lines).encode()
    if len(data) <= MOST_BYTES // 2:
        return data
    rest = data[-(MOST_BYTES // 2) :]
    return rest[rest.index(b"\n") + 1 :]


def _make_room(folder: Path, n_bytes: int) -> int:
    """Delete what is too much once there is another file of so many bytes; returns how many files that were."""
    folder.mkdir(parents=True, exist_ok=True)
    kept, n_deleted = 0, 0
    for n_before, (_, size, path) in enumerate(sorted(_found(folder), reverse=True)):
        kept += size
        if n_before + 1 >= MOST_FILES or kept + n_bytes > MOST_BYTES:
            path.unlink(missing_ok=True)
            n_deleted += 1
    return n_deleted


def _found(folder: Path) -> Iterable[tuple[int, int, Path]]:
    for path in folder.glob(PATTERN):
        try:
            status = path.stat()
        except FileNotFoundError:  # another server's engine was faster
            continue
        yield status.st_mtime_ns, status.st_size, path


def _write(folder: Path, data: bytes) -> Path:
    """All of it, or no file: a disk that is full is not to be filled with parts."""
    path = folder / f"engine-journal-{os.getpid()}.jsonl"
    path.touch(mode=0o600)
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path
