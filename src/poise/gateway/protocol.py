"""uvicorn's HTTP protocol with a bound on the time that a client takes for its request line and headers, and with small buffers.

uvicorn waits for headers for ever; a client that sends a byte a minute would hold a connection each. The body has its own
bound, in `body`. A client that does not read is noticed late if the kernel takes in megabytes for it: so each connection's
send buffer is small, and requests can look at their connection's transport.
"""

from __future__ import annotations

import asyncio
import socket

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from poise.config import Settings
from poise.gateway.backpressure import TRANSPORT, high_water
from poise.gateway.errors import ApiError


def protocol(settings: Settings) -> type[HttpToolsProtocol]:
    """A protocol class for uvicorn's `http` option."""
    header_timeout_s = settings.server.body_timeout_s
    send_buffer_bytes, buffered_max = settings.streams.send_buffer_bytes, high_water(settings.streams)

    class PoiseProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=buffered_max)
            connection = transport.get_extra_info("socket")
            if send_buffer_bytes and connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
            self._start_timer()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope[TRANSPORT] = self.transport  # type: ignore[literal-required]
            self._start_timer()

        def on_headers_complete(self) -> None:
            self._stop_timer()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _start_timer(self) -> None:
            if self._timer is None:
                self._timer = self.loop.call_later(header_timeout_s, self._too_slow)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.write(_response(header_timeout_s))
                self.transport.close()

    return PoiseProtocol


def _response(timeout_s: float) -> bytes:
    message = f"The request's headers were not complete after {timeout_s:g} s. Send them faster."
    body = ApiError(408, "request_timeout", message).body()
    head: dict[str, object] = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 408 Request Timeout\r\n{lines}\r\n".encode() + body
