"""The flight recorder on its way from the engine to an operator: page by page, to one reader at a time, for a bounded time.

The next page is asked for when the client has taken the last one, so that neither the engine nor the gateway ever holds more of a
journal than a page of text."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from poise.gateway.http.stream import while_connected
from poise.gateway.models.local.refusals import engine_unavailable
from poise.gateway.request.refusals import ClientGone, journal_is_read
from poise.gateway.supervision.engine import EngineProcess, EngineUnavailable
from poise.gateway.supervision.questions import JOURNAL_RETRY_S

log = logging.getLogger(__name__)

READ_S_MAX = 120.0
"""How long one reader may take for all of it: a client that does not read keeps others away for no longer."""


class JournalRoom:
    """Room for one reader."""

    def __init__(self, engine: EngineProcess, read_s_max: float = READ_S_MAX) -> None:
        self._engine = engine
        self._read_s_max = read_s_max
        self._is_taken = False

    async def open(self) -> "JournalAnswer":
        """The answer for a reader, when the first page is there. Raises ApiError."""
        if self._is_taken:
            raise journal_is_read(JOURNAL_RETRY_S)
        self._is_taken = True
        pages = self._engine.journal()
        try:
            first: list[str] = await anext(pages, [])
        except BaseException as error:
            await self.leave(pages)
            if isinstance(error, EngineUnavailable):
                raise engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent) from None
            raise
        return JournalAnswer(self, first, pages, self._read_s_max)

    async def leave(self, pages: AsyncGenerator[list[str], None]) -> None:
        """The reader has gone, or has all of it."""
        self._is_taken = False
        await pages.aclose()


class JournalAnswer(Response):
    """A journal as lines of JSON. Where it breaks off, the last line says so and is no entry."""

    def __init__(self, room: JournalRoom, first: list[str], pages: AsyncGenerator[list[str], None], read_s_max: float) -> None:
        super().__init__(media_type="application/x-ndjson")
        self.raw_headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        self._room = room
        self._first = first
        self._pages = pages
        self._read_s_max = read_s_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone):
                await while_connected(receive, self._send(send))
        finally:
            await self._room.leave(self._pages)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async with asyncio.timeout(self._read_s_max):
                await send(_part(self._first))
                async for lines in self._pages:
                    await send(_part(lines))
        except (EngineUnavailable, TimeoutError) as error:
            reason = str(error) or f"it was not read within {self._read_s_max:g} s"
            log.info("a journal broke off: %s", reason)
            await send(_part([msgspec.json.encode({"kind": "broken_off", "reason": reason}).decode()]))
        await send({"type": "http.response.body", "body": b""})


def _part(lines: list[str]) -> dict[str, Any]:
    return {"type": "http.response.body", "body": "".join(f"{line}\n" for line in lines).encode(), "more_body": True}
