"""Room on the disk for what operators do, also when nothing else has any: a file that is given up when the disk is full.

While it is given up, ordinary entries are not written: they would take the room at once."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

RESERVE_NAME = "reserve"
RESERVE_BYTES = 1 << 20
"""Some two thousand entries."""
RETRY_S = 1.0


class Reserve:
    """The file, in the log's folder."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / RESERVE_NAME
        self._clock = clock
        self._is_held = False
        self._tried_s = -RETRY_S

    def hold(self) -> bool:
        """Whether the room is held, or could be taken again. It is tried once a second."""
        now_s = self._clock()
        if not self._is_held and now_s - self._tried_s >= RETRY_S:
            self._tried_s = now_s
            self._is_held = self._take()
        return self._is_held

    def give_up(self) -> bool:
        """Free the room. False: there was none."""
        if not self._is_held:
            return False
        self._is_held, self._tried_s = False, self._clock()
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False

    def _take(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return False
        return True
