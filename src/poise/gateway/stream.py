"""Answers that take a while: noticing at once that the client has left, and server-sent events.

ASGI tells of a lost connection only to those who ask, by `receive()`. After a disconnect `send()` returns as if all were well,
so a server that only sends would go on computing for nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from poise.gateway.bugs import log_bug
from poise.gateway.errors import ApiError, ClientGone, internal_error

log = logging.getLogger(__name__)

T = TypeVar("T")

DIRECT_SEND = "poise.send"
"""Where the middleware leaves the server's own `send` in the scope. Each layer between wraps it in one that looks at the head of
an answer and passes on its body; a token's worth of body would go through them all for nothing."""


class EventStream(Response):
    """Sends events until they end or the client leaves; calls `close` in every case, also when nothing could be sent.

    An error after the status line can only be told in the stream: as an event `{"error": {...}}`, after which the stream ends
    without `[DONE]`.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        close: Callable[[], None],
        request_id: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(media_type="text/event-stream")
        # No length; and no proxy is to keep the events for later.
        self.raw_headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
        ]
        self._events = events
        self._close = close
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send, scope.get(DIRECT_SEND, send)))
        except ClientGone:
            log.info("[%s] client left its stream", self._request_id)
        finally:
            self._close()
            await self._events.aclose()

    async def _send(self, send_head: Send, send: Send) -> None:
        await send_head({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except ApiError as error:
            await send({"type": "http.response.body", "body": error_event(error), "more_body": True})
        except Exception as bug:
            error_id = log_bug(log, self._request_id, bug, " in a stream")
            await send({"type": "http.response.body", "body": error_event(internal_error(error_id)), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; when the client leaves first, `work` is cancelled and ClientGone raised.

    The request's body must have been read. Both tasks have ended when this returns.
    """
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


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_event(error: ApiError) -> bytes:
    return b"data: " + error.body() + b"\n\n"
