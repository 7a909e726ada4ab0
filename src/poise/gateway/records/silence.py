"""How long a stream has said nothing: when it is told that it lives, and what wakes it then."""

import asyncio
import time

from poise.gateway.records.wakeup import Wakeup
from poise.gateway.records.writer import KEEP_ALIVE, Writer


class Silence:
    """Of one stream, which sleeps on `wakeup`. `limit_s`: the longest; 0: it may last for ever."""

    def __init__(self, limit_s: float, wakeup: Wakeup, writer: Writer) -> None:
        self._limit_s = limit_s
        self._wakeup = wakeup
        self._writer = writer
        self._since_s = time.perf_counter()
        self.alarm: asyncio.TimerHandle | None = None

    async def wait(self) -> None:
        """Sleep until something has changed, or the silence may have lasted too long: the alarm is set late rather than often."""
        if self.alarm is None and self._limit_s > 0:
            left_s = self._since_s + self._limit_s - time.perf_counter()
            self.alarm = asyncio.get_running_loop().call_later(left_s, self._ring)
        await self._wakeup.wait()

    def told(self, data: bytes, now_s: float) -> bytes:
        """What is said now: `data`, or if that is nothing and has been for too long, that the stream lives."""
        if data or 0 < self._limit_s <= now_s - self._since_s:
            self._since_s = now_s
            return data or self._writer.note(KEEP_ALIVE, None, {})
        return data

    def end(self) -> None:
        """Nobody listens any more."""
        if self.alarm is not None:
            self.alarm.cancel()

    def _ring(self) -> None:
        self.alarm = None
        self._wakeup.set()
