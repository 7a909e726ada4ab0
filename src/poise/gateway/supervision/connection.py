"""The gateway's end of the socket to the engine: messages are dispatched as they arrive, with no stream or task in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from poise.wire import messages as wire
from poise.wire.framing import FrameDecoder


class EngineConnection(asyncio.Protocol):
    def __init__(self, dispatch: Callable[[wire.ToGateway], None], lost: asyncio.Future[None]) -> None:
        self.lost = lost
        """Done at the end of the connection, with what broke it."""
        self._dispatch = dispatch
        self._frames: FrameDecoder[wire.ToGateway] = FrameDecoder(wire.ToGateway)
        self._transport: asyncio.Transport | None = None

    def write(self, data: bytes) -> None:
        """Send a message. Does nothing once the connection is lost: the next engine is sent every live request anyway."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._dispatch(message)
        except Exception as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost.done():
            return
        if exc is None:
            self.lost.set_result(None)
        else:
            self.lost.set_exception(exc)
