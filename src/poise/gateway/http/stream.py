"""Answers that take a while: noticing at once that the client has left, and server-sent events.

ASGI tells of a lost connection only to those who ask, by `receive()`. After a disconnect `send()` returns as if all were well,
so a server that only sends would go on computing for nobody."""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from poise.config.serving import ReaderSettings
from poise.gateway.http.backpressure import Outlet, ReaderStuck, until_room
from poise.gateway.http.connections.exchange import DIRECT_SEND, EXCHANGE
from poise.gateway.records.reader import CHUNK_BYTES, Reader
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.refusals import ClientGone, internal_error
from poise.metrics.clients import StreamMetrics

log = logging.getLogger(__name__)

T = TypeVar("T")


class EventStream(Response):
    """Sends what a reader takes from its record, until that ends, the client leaves, or it is stuck for too long.

    An error after the status line can only be sent in the stream: as an event `{"error": {...}}`, after which the stream ends
    without `[DONE]`."""

    def __init__(
        self, reader: Reader, allowed: ReaderSettings, metrics: StreamMetrics, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(media_type="text/event-stream")
        # No length; and no proxy is to keep the events for later.
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
        ]
        self._reader = reader
        self._allowed = allowed
        self._metrics = metrics
        self._request_id = reader.record.origin.request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outlet = Outlet(scope, self._allowed.unsent_bytes_max)
        if (exchange := scope.get(EXCHANGE)) is not None:
            exchange.has_patience = True
        try:
            await while_connected(receive, self._send(send, scope.get(DIRECT_SEND, send), outlet))
        except ClientGone:
            log.info("[%s] client left its stream", self._request_id)
        except ReaderStuck:
            log.info("[%s] client took nothing from its stream for too long", self._request_id)
            self._metrics.timed_out(self._reader.record.origin.request_class)
            self._reader.leave(stuck=True)
            outlet.abort()
        finally:
            self._reader.leave()

    async def _send(self, send_head: Send, send: Send, outlet: Outlet) -> None:
        reader = self._reader
        await send_head({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            while True:
                if data := reader.take():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    if outlet.wrote(len(data)):
                        await until_room(outlet, reader, self._allowed, self._metrics)
                    if len(data) >= CHUNK_BYTES:
                        await asyncio.sleep(0)  # there is more, and a fast client's socket would never make it wait
                if reader.is_done:
                    break
                await reader.wait()
        except ReaderStuck:
            raise
        except Exception as bug:
            error_id = log_bug(log, self._request_id, bug, " in a stream")
            data = reader.error_event(internal_error(error_id))
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client leaves first, `work` is cancelled and ClientGone raised.

    The request's body must have been read. Both tasks have ended when this returns."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(watch, task, return_exceptions=True)
        del watch, task  # an error's traceback has this frame, and the task has the error: they would hold each other


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
