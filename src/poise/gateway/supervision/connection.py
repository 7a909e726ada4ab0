"""The gateway's end of the socket to another process: messages are handed on as they come, with no stream or task between."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

from poise.wire.framing import FrameDecoder

T = TypeVar("T")


class FrameConnection(asyncio.Protocol, Generic[T]):
    """Takes frames of `kind`, each of which `receive` is called with."""

    def __init__(self, kind: Any, receive: Callable[[T], None], lost: asyncio.Future[None]) -> None:
        self.lost = lost
        """Done at the end of the connection, with what broke it."""
        self._receive = receive
        self._frames: FrameDecoder[T] = FrameDecoder(kind)
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
                self._receive(message)
        except Exception as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost.done():
            return
        if exc is None:
            self.lost.set_result(None)
        else:
            self.lost.set_exception(exc)
