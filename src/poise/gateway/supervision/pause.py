"""The pause before another start that has little hope: cut short when the model file has become another one."""

from __future__ import annotations

import asyncio
import time

from poise.gateway.supervision.model_file import file_state

LOOK_EVERY_S = 1.0


async def pause(longest_s: float, path: str) -> None:
    """Return when the file has changed and was then left alone from one look to the next, or when the time is over."""
    first = before = file_state(path)
    end_s = time.monotonic() + longest_s
    while (left_s := end_s - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_EVERY_S, left_s))
        now = file_state(path)
        if now == before != first:
            return
        before = now
