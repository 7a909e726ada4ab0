"""How a client reads its answer: as fast as it comes, slowly, or not at all after a while.

A slow reader has to be slow where the server can feel it: its connection takes little in advance (`RECEIVE_BYTES` in the kernel,
a small buffer here), so that what it does not read waits at the server. It reads at full speed until the first text, and its pace
counts from there: the TTFT is the server's, the rest is the reader's own.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp

from poise.scenarios.model import Reading

RECEIVE_BYTES = 4096
"""The kernel gives a socket about twice of it, which still is a few dozen events only."""
PIECE_BYTES = 256
"""About one event of a chat stream."""


def slow_session() -> aiohttp.ClientSession:
    """Connections that take little in advance, each used once."""

    def small_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family=family, type=kind, proto=protocol)
        # Before connecting, for the window that the server is sent depends on it.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        return made

    connector = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=small_socket)
    forever = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(connector=connector, timeout=forever, read_bufsize=2 * PIECE_BYTES)


async def pieces(content: aiohttp.StreamReader, reading: Reading | None, n_chunks: Callable[[], int]) -> AsyncIterator[bytes]:
    """The answer as this reader gets it; `n_chunks` says how many chunks with text it has so far."""
    if reading is not None:
        while n_chunks() < (reading.after_tokens if reading.kind == "stuck" else 1):
            data = await content.read(PIECE_BYTES)
            if not data:
                return
            yield data
        if reading.kind == "stuck":
            await asyncio.sleep(reading.stuck_s if reading.stuck_s is not None else float("inf"))
        else:
            async for data in _paced(content, reading, n_chunks):
                yield data
            return
    async for data in content.iter_any():
        yield data


async def _paced(content: aiohttp.StreamReader, reading: Reading, n_chunks: Callable[[], int]) -> AsyncIterator[bytes]:
    """What is read never exceeds the pace since the first text, in bytes or in chunks."""
    began_s, n_began, n_bytes = time.perf_counter(), n_chunks(), 0
    while data := await content.read(PIECE_BYTES):
        yield data
        n_bytes += len(data)
        n_read = n_bytes if reading.kind == "bytes" else n_chunks() - n_began
        await asyncio.sleep(max(0.0, began_s + n_read / reading.per_s - time.perf_counter()))
