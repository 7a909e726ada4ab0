"""The gateway's end of the engine's socket, over a real socket and the event loop that the server runs on."""

from __future__ import annotations

import asyncio
import socket

import uvloop

from poise.gateway.supervision.launch import FrameConnection
from poise.wire import messages as wire


def test_what_is_written_to_a_lost_connection_is_dropped() -> None:
    """A client that leaves in the moment between is no internal error: uvloop raises on a transport that is closed."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        lost: asyncio.Future[None] = loop.create_future()
        connection: FrameConnection[wire.ToGateway]
        _, connection = await loop.create_connection(lambda: FrameConnection(wire.ToGateway, lambda _: None, lost), sock=ours)
        connection.write(b"abc")
        assert await asyncio.to_thread(theirs.recv, 3) == b"abc"
        connection.close()
        await lost
        connection.write(b"more")
        assert theirs.recv(4) == b""
        theirs.close()

    uvloop.run(scenario())
