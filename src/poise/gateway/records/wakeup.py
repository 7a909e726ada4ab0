"""A sleeper and those who wake it: the one signal of the event loop that records and their readers need."""

from __future__ import annotations

import asyncio


class Wakeup:
    """Lets one waiter sleep until somebody has something for it. Who is woken looks for itself what it is."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        """Returns at the next `set`. What was set before does not count."""
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None
