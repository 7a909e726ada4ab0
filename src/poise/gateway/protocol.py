"""uvicorn's HTTP protocol with a bound on the time that a client takes for its request line and headers.

uvicorn waits for headers for ever; a client that sends a byte a minute would hold a connection each. The body has its own
bound, in `body`.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from poise.gateway.errors import ApiError


def protocol_with_timeout(header_timeout_s: float) -> type[HttpToolsProtocol]:
    """A protocol class for uvicorn's `http` option."""

    class TimedProtocol(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def on_message_begin(self) -> None:
            super().on_message_begin()
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

    return TimedProtocol


def _response(timeout_s: float) -> bytes:
    message = f"The request's headers were not complete after {timeout_s:g} s. Send them faster."
    body = ApiError(408, "request_timeout", message).body()
    head: dict[str, object] = {"Content-Type": "application/json", "Content-Length": len(body), "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    return f"HTTP/1.1 408 Request Timeout\r\n{lines}\r\n".encode() + body
