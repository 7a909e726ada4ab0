"""One request and its answer, between an ASGI application and a connection."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from poise.gateway.http.connections.heads import Head, Headers
from poise.gateway.http.connections.places import STRANGERS, Place, Places
from poise.gateway.http.connections.refusals import account_full, bodies_full
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.refusals import ApiError, internal_error, new_error_id

log = logging.getLogger(__name__)

EXCHANGE = "poise.exchange"
"""Where a request's Exchange is in its scope."""
DIRECT_SEND = "poise.send"
"""Where the middleware leaves the server's own `send` in the scope. Each layer between wraps it in one that looks at the head of
an answer and passes on its body; a token's worth of body would go through them all for nothing."""
BODY_AHEAD_BYTES = 65_536
"""So much of a body is taken from the network before the application asks for it."""

_NO_CONTENT = (204, 304)
_STATUS = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}


class Wire(Protocol):
    """What an Exchange needs of its connection."""

    places: Places
    place: Place
    write_paused: bool

    def write(self, data: bytes) -> None: ...

    async def writable(self) -> None:
        """Returns when there is room, or when the connection is lost."""

    def read_on(self) -> None:
        """There is room for more of the body."""

    def default_headers(self) -> Headers: ...

    def will_close(self) -> bool:
        """Whether the connection ends with this answer, asked when the answer begins."""

    def answered(self, *, keep_alive: bool) -> None:
        """The answer is whole."""

    def abort(self) -> None: ...

    @property
    def is_closing(self) -> bool: ...


@dataclass(eq=False, repr=False, slots=True)
class Exchange:
    """The state of one request. Its connection feeds it; the application calls `receive` and `send`."""

    _wire: Wire
    _head: Head
    _account: str = STRANGERS
    _body: bytearray = field(default_factory=bytearray)
    _body_bytes: int = 0
    """What is counted for this request until its task has ended."""
    _is_claimed: bool = False
    _is_refused: bool = False
    """There is no room for more of the body; what comes of it is dropped."""
    _refusal: ApiError | None = None
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    _started: bool = False
    _pending: bytes = b""
    """The answer's head, until the first of its body goes with it."""
    _is_chunked: bool = False
    _left: int | None = None
    """Of an announced length."""
    _is_taken: bool = False
    """The application has all of the body."""
    is_whole: bool = False
    """All of the body is here."""
    is_complete: bool = False
    """All of the answer was sent."""
    is_lost: bool = False
    """Nobody is there any more."""
    has_patience: bool = False
    """The application itself sees to a client that does not take what it is sent."""
    waits_for_continue: bool = field(init=False)
    _keep_alive: bool = field(init=False)

    def __post_init__(self) -> None:
        self.waits_for_continue, self._keep_alive = self._head.expects_continue, self._head.keep_alive

    @property
    def body_ahead(self) -> int:
        """Bytes that the application has not asked for yet."""
        return len(self._body)

    def claim(self, account: str) -> None:
        """From now on the request is on this account, with its connection and its body. Raises ApiError (429).

        Asked for once, as the first thing: what came before is bounded by what is read ahead."""
        places = self._wire.places
        if not places.move_body(self._account, account, self._body_bytes):
            raise bodies_full(places.bodies.held(account), places.bodies.total)
        self._account, self._is_claimed = account, True
        if account != STRANGERS and not places.claim(self._wire.place, account):
            raise account_full(places.held_by(account))

    def feed(self, data: bytes) -> None:
        """Some of the body has come in."""
        if self.is_complete or self._is_refused:
            return
        places = self._wire.places
        if self._is_claimed and not places.take_body(self._account, len(data)):
            self._is_refused = True
            self._refusal = bodies_full(places.bodies.held(self._account), places.bodies.total)
            self._body.clear()
        else:
            if not self._is_claimed:
                places.bodies.add(self._account, len(data))
            self._body_bytes += len(data)
            self._body += data
        self._event.set()

    def grow(self, n_bytes: int) -> None:
        """The body takes so much more than was sent: it came packed. Raises ApiError (429)."""
        places = self._wire.places
        if not places.take_body(self._account, n_bytes):
            raise bodies_full(places.bodies.held(self._account), places.bodies.total)
        self._body_bytes += n_bytes

    def end(self) -> None:
        """The body is complete."""
        self.is_whole = True
        self._event.set()

    def lose(self) -> None:
        """The connection is gone."""
        self.is_lost = True
        self._event.set()

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Have the request answered. Whatever the application does, there is an answer or the connection ends."""
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._wire.abort()
            raise
        except Exception as bug:
            await self._failed(log_bug(log, "-", bug, " in the application"))
        else:
            if not (self.is_complete or self.is_lost or self._wire.is_closing):
                log.error("an answer was not complete when its application returned")
                await self._failed(new_error_id())
        finally:
            self._wire.places.bodies.give(self._account, self._body_bytes)
            self._body_bytes = 0

    async def receive(self) -> Message:
        if self.waits_for_continue and not self._started and not self.is_lost:
            self.waits_for_continue = False
            self._wire.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self.is_lost or self.is_complete):
            if self._refusal is not None:
                refusal, self._refusal = self._refusal, None
                raise refusal
            if self._body or (self.is_whole and not self._is_taken):
                body, self._body = bytes(self._body), bytearray()
                self._is_taken = self.is_whole
                self._wire.read_on()
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            self._event.clear()
            await self._event.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self._wire.write_paused and not self.is_lost:
            await self._wire.writable()
        if self.is_lost:
            return
        if message["type"] == "http.response.start":
            if self._started:
                raise RuntimeError("the answer has begun already")
            self._start(message["status"], message.get("headers", ()))
            if self._head.method == "HEAD":  # that was all; an answer without an end hears that its client has left
                self._send_body(b"", more=False)
            return
        if self._head.method == "HEAD":
            return
        if not self._started or self.is_complete:
            raise RuntimeError("a body before its head, or after its end")
        self._send_body(message.get("body", b""), message.get("more_body", False))

    def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._started = True
        has_body = status not in _NO_CONTENT and self._head.method != "HEAD"
        lines, closes = [], self._wire.will_close()
        for name, value in [*self._wire.default_headers(), *headers]:
            match name.lower():
                case b"content-length":
                    self._left = int(value)
                case b"connection":
                    closes = closes or b"close" in value.lower()
                    continue
                case b"transfer-encoding":
                    continue  # the connection's own business
            lines.append(b"%b: %b\r\n" % (name, value))
        if not has_body:
            self._left = 0
        elif self._left is None and self._head.version == "1.1":
            self._is_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        elif self._left is None:
            closes = True  # HTTP/1.0 knows no chunks: the end of the connection is the end of the answer
        self._keep_alive = self._keep_alive and not closes
        if not self._keep_alive:
            lines.append(b"connection: close\r\n")
        elif self._head.version == "1.0":
            lines.append(b"connection: keep-alive\r\n")
        head = b"".join([_STATUS.get(status) or b"HTTP/1.1 %d \r\n" % status, *lines, b"\r\n"])
        if head.count(b"\n") != len(lines) + 2 or head.count(b"\r") != len(lines) + 2:
            self._started = False
            raise RuntimeError("a header has a line's end in it")
        if self._left is not None:
            self._pending = head  # what comes next belongs to the same answer, and is there already
        else:
            self._wire.write(head)

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            data = body
            if self._left is not None:
                self._left -= len(data)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the answer is not as long as it said")
        if self._pending:
            data, self._pending = self._pending + data, b""
        if data:
            self._wire.write(data)
        if not more:
            self.is_complete = True
            self._event.set()
            self._wire.answered(keep_alive=self._keep_alive)

    async def _failed(self, error_id: str) -> None:
        if self._started or self.is_lost:
            self._wire.abort()
            return
        body = internal_error(error_id).body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self.send({"type": "http.response.start", "status": 500, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})
