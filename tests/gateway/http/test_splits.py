"""However the bytes of requests arrive, split or together, the same answers are written."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from poise.config import Settings
from poise.gateway.http.connections.hub import Hub, places_of
from poise.gateway.http.connections.protocol import Connection
from tests.gateway.http.apps import App


class Transport(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self._is_closing = False

    def write(self, data: Any) -> None:
        if not self._is_closing:
            self.written += data

    def close(self) -> None:
        self._is_closing = True

    abort = write_eof = close

    def is_closing(self) -> bool:
        return self._is_closing

    def can_write_eof(self) -> bool:
        return True

    def is_reading(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


REQUESTS = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\r\nHEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /chunks HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nhi",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\na\r\n\r\n1\r\nb\r\n0\r\nA: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"nonsense\r\n\r\n",
)


async def answered(pieces: list[bytes]) -> tuple[bytes, list[str]]:
    """All that is written, and what the application was asked."""
    made, app = Settings(), App()
    hub = Hub(made, places_of(made, 1024), None, app=app, is_tls=False)
    transport, connection = Transport(), Connection(hub, hub.places.enter("", lambda: None))
    connection.connection_made(transport)
    for piece in pieces:
        if piece:
            connection.data_received(piece)
            for _ in range(3):
                await asyncio.sleep(0)
    for _ in range(60):
        await asyncio.sleep(0)
    connection.connection_lost(None)
    assert hub.places.n_open == 0
    assert hub.places.bodies.used == 0
    return bytes(transport.written), app.asked


@settings(max_examples=40)
@given(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=5), st.lists(st.integers(0, 700), max_size=25), st.booleans())
def test_splits_change_nothing(requests: list[bytes], cuts: list[int], every_byte: bool) -> None:
    """One answer for each request, up to the first one that ends the connection."""
    data = b"".join(requests)
    at = list(range(len(data))) if every_byte else sorted({min(cut, len(data)) for cut in cuts})
    pieces = [data[begin:end] for begin, end in zip([0, *at], [*at, len(data)], strict=True)]
    assert asyncio.run(answered(pieces)) == asyncio.run(answered(requests))
