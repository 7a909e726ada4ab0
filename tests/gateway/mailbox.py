"""Collects the events of a live request for a test that looks at them, or waits for them."""

from __future__ import annotations

import asyncio

from poise.gateway.supervision.engine import RequestEvent, RequestHandle


class Mailbox:
    """Listens from the beginning."""

    def __init__(self, handle: RequestHandle) -> None:
        self.request_id = handle.request_id
        self.abort = handle.abort
        self._handle = handle
        self._events: asyncio.Queue[RequestEvent] = asyncio.Queue()
        handle.listen(self._events.put_nowait)

    @property
    def done(self) -> bool:
        """Its last event has been put."""
        return self._handle.done

    def take(self) -> list[RequestEvent]:
        """What has come since the last call, perhaps nothing."""
        return [self._events.get_nowait() for _ in range(self._events.qsize())]

    async def receive(self) -> list[RequestEvent]:
        """The same, at least one event; waits for it."""
        return [await self._events.get(), *self.take()]
