"""The pause before another start that has little hope: cut short when the model file has become another one."""

from __future__ import annotations

import asyncio
import os
import time

LOOK_EVERY_S = 1.0


async def pause(longest_s: float, path: str) -> None:
    """Return when the file has changed and was then left alone from one look to the next, or when the time is over."""
    first = before = _look(path)
    end_s = time.monotonic() + longest_s
    while (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_EVERY_S, left_s))
        now = _look(path)
        if now == before != first:
            return
        before = now


def _look(path: str) -> tuple[int, int, int] | None:
    """What tells one state of a file from another. None: it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
