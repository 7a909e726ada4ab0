"""Whether the model file is still the one whose vocabulary the gateway speaks.

Each engine is sent what file it must find, and refuses another one before it loads anything. Beside that the file is looked at:
one that was written over in place is changing under an engine that has it in its memory, which has to end at once. One that was
replaced by another (under the same name) is not: the engine keeps the file that it opened, and is refused the next one."""

import asyncio
import contextlib
import os
import time
from pathlib import Path

from poise.wire.fingerprint import fingerprint

LOOK_EVERY_S = 1.0
FileState = tuple[int, int, int]
"""Inode, size and modification time: what tells one state of a file from another."""


def file_state(path: str) -> FileState | None:
    """What tells one state of a file from another; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class ModelFile:
    """The file at a path, as it was when this was made. Where there was none, nothing is known and nothing has changed."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen = file_state(path)
        self._opened = self._seen
        self.fingerprint = ""
        with contextlib.suppress(OSError):
            self.fingerprint = fingerprint(Path(path))
        self.is_changed = False
        """Another file is there now."""

    def opened(self) -> None:
        """An engine is started, which opens the file that is there now."""
        self._opened = file_state(self.path)

    @property
    def is_overwritten(self) -> bool:
        """The file that the engine has opened is the one that changed."""
        seen, opened = self._seen, self._opened
        return self.is_changed and seen is not None and opened is not None and seen[0] == opened[0]

    async def look(self) -> None:
        """Find out whether it has changed. Its contents are looked at only when it was touched. Raises OSError."""
        seen = file_state(self.path)
        if seen is None or seen == self._seen or not self.fingerprint:
            return
        now = await asyncio.to_thread(fingerprint, Path(self.path))
        self._seen = seen
        self.is_changed = now != self.fingerprint


async def pause(longest_s: float, path: str) -> None:
    """The pause before another start that has little hope: until the file has changed and was then left alone from one look to
    the next, or until the time is over."""
    first = before = file_state(path)
    end_s = time.monotonic() + longest_s
    while (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_EVERY_S, left_s))
        now = file_state(path)
        if now == before != first:
            return
        before = now
