"""A connection from its first byte to its last: every time it may take, and every byte it may send, has its bound here.

A request's head is collected until it is complete, within its size and its time, and only then read (`heads`). Its body is cut
off by what the head announced (`framing`). What comes after it waits until the answer is sent: one request at a time. When
the connection is lost, the one request that there can be is notified.

How long something may take: a head `server.body_timeout_s`, whatever trickles in; a body the same; silence between two requests
`server.idle_timeout_s`, which bytes that are no request do not lengthen; bytes of an answer that the client does not take
`server.send_timeout_s`. Streams have a patience of their own (`backpressure`)."""

import asyncio
import math
import time
from email.utils import formatdate
from enum import Enum
from functools import lru_cache

from starlette.types import Scope

from poise.gateway.http.backpressure import TRANSPORT
from poise.gateway.http.connections import heads
from poise.gateway.http.connections.exchange import BODY_AHEAD_BYTES, EXCHANGE, Exchange
from poise.gateway.http.connections.heads import Framing, framing_of
from poise.gateway.http.connections.hub import Hub
from poise.gateway.http.connections.outgoing import Outgoing
from poise.gateway.http.connections.peers import PEER, Peer
from poise.gateway.http.connections.places import ADDRESS_FULL, Place, is_always_answered
from poise.gateway.http.connections.refusals import address_full, connections_full, head_too_slow, malformed, rendered
from poise.gateway.request.refusals import ApiError

EMPTY_LINES_MAX = 64
"""Bytes of empty lines before a request; some old clients send one."""
AHEAD_BYTES_MAX = 65_536
"""Bytes that may come behind a request before its answer is complete."""
DISCARD_BYTES_MAX = 1 << 18
"""Of a body that nobody wants any more so much is read, to keep the connection."""
LINGER_S = 2.0
"""After the last answer a client has so long to read it: closing at once, with bytes of its unread, could take it away again."""
LINGER_BYTES_MAX = 1 << 24
REFUSED_HEAD_S = 5.0
"""Where there is no room, a request is waited for no longer than that."""


@lru_cache(maxsize=1)
def _dated(second: int) -> heads.Headers:
    """What every answer of that second says."""
    return [(b"date", formatdate(second, usegmt=True).encode())]


class Phase(Enum):
    HEAD = "head"
    """A request is expected: the first one, or the rest of one that has begun."""
    ANSWER = "answer"
    DISCARD = "discard"
    """It was answered before its body was complete."""
    IDLE = "idle"
    LINGER = "linger"
    """The last answer was sent."""


class Connection(asyncio.Protocol):
    def __init__(self, hub: Hub, place: Place) -> None:
        self._hub = hub
        self._limits = hub.limits
        self._loop = asyncio.get_running_loop()
        self.places = hub.places
        self.place = place
        self.is_made = False
        """It has its transport, or had."""
        self.write_paused = False
        self._transport: asyncio.Transport | None = None
        self._address: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._phase = Phase.HEAD
        self._unread = bytearray()
        self._n_scanned = 0
        """Bytes of a head that were looked at already."""
        self._n_empty = 0
        self._framing: Framing | None = None
        self._exchange: Exchange | None = None
        self._can_keep = True
        self._n_discarded = 0
        self._room = asyncio.Event()
        self._deadline_s = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._outgoing = Outgoing(self._not_taken, hub.limits.send_timeout_s)

    # What the transport tells.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport, self.is_made = transport, True
        transport.set_write_buffer_limits(high=self._hub.write_high_water)
        self._outgoing.begin(transport)
        self._address, self._server = (transport.get_extra_info(name) for name in ("peername", "sockname"))
        self.place.dismiss = self.dismiss
        self._hub.state.connections.add(self)  # type: ignore[arg-type]
        if not self.places.is_open(self.place):  # its place was given away meanwhile
            transport.abort()
        self._due(Phase.HEAD, REFUSED_HEAD_S if self.place.refused else self._limits.body_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._hub.state.connections.discard(self)
        self.places.leave(self.place)
        self.place.dismiss = lambda: None  # no longer this connection's own: nothing is to wait for the collector
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._outgoing.end()
        exchange, self._exchange = self._exchange, None  # it has this protocol, and the scope of its request
        if exchange is not None:
            exchange.lose()
        self._room.set()
        self._unread.clear()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.LINGER:
            self._n_discarded += len(data)
            if self._n_discarded > LINGER_BYTES_MAX:
                self.abort()
            return
        if self._phase is Phase.ANSWER and self._framing is None:
            self._ahead(data)
            return
        self._unread += data
        self._advance()

    def eof_received(self) -> None:
        """The client has left; the transport closes itself."""

    def pause_writing(self) -> None:
        self.write_paused = True
        self._room.clear()

    def resume_writing(self) -> None:
        self.write_paused = False
        self._room.set()

    # What comes in.

    def _advance(self) -> None:
        """Use as much of what has come in as can be used now."""
        try:
            while self._unread and self._phase is not Phase.LINGER and not self.is_closing:
                if self._framing is not None:
                    n_unread = len(self._unread)
                    self._take_body(self._framing)
                    if len(self._unread) == n_unread:
                        return  # a part of a line: the rest has to come in first
                elif self._phase is Phase.ANSWER or not self._take_head():
                    return
        except ApiError as error:
            self._refuse(error)

    def _take_body(self, framing: Framing) -> None:
        exchange = self._exchange
        data = framing.feed(self._unread)
        if exchange is not None:
            if data:
                exchange.feed(data)
            if exchange.body_ahead > BODY_AHEAD_BYTES and self._transport is not None:
                self._transport.pause_reading()
        else:
            self._n_discarded += len(data)
        if framing.is_complete:
            self._framing = None
            if exchange is not None:
                exchange.end()
            elif self._phase is Phase.DISCARD:
                self._rest()

    def _take_head(self) -> bool:
        """Begin with a request if its head is complete. Raises ApiError."""
        unread = self._unread
        if self._n_scanned == 0:
            while unread.startswith(b"\r\n"):
                del unread[:2]
                self._n_empty += 2
            if self._n_empty > EMPTY_LINES_MAX:
                raise malformed("too many empty lines come before it")
            if not unread or unread == b"\r":
                return False
            if self._phase is Phase.IDLE:
                self._due(Phase.HEAD, self._limits.body_timeout_s)
        end = unread.find(b"\r\n\r\n", max(0, self._n_scanned - 3))
        heads.check(unread, end, self._limits)
        self._n_scanned = len(unread)
        if end < 0:
            return False
        data = bytes(memoryview(unread)[: end + 4])
        del unread[: end + 4]
        self._n_scanned = self._n_empty = 0
        self._begin(heads.parse(data))
        return True

    def _begin(self, head: heads.Head) -> None:
        """The head of a request is complete. Raises ApiError."""
        peer = self._hub.proxies.peer(self._address[0] if self._address else "", head.headers)
        if self.place.refused:
            if not is_always_answered(head.path):
                raise self._no_room(peer)
            self._can_keep = False
        elif not self.places.serve_address(self.place, self._hub.bounded(peer.address)):
            raise address_full(peer.address, self.places.held_at(peer.address))
        self._due(Phase.ANSWER, math.inf)
        self._exchange = exchange = Exchange(self, head)
        framing = framing_of(head)
        if framing.is_complete:
            exchange.end()
        else:
            self._framing = framing
        self._hub.start(exchange, self._scope(head, peer, exchange))

    def _no_room(self, peer: Peer) -> ApiError:
        if self.place.refused == ADDRESS_FULL:
            return address_full(peer.address, self.places.held_at(self.place.address))
        return connections_full(self.places.connections)

    def _scope(self, head: heads.Head, peer: Peer, exchange: Exchange) -> Scope:
        port = self._address[1] if self._address else 0
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": head.version,
            "method": head.method,
            "scheme": self._hub.scheme,
            "path": head.path,
            "raw_path": head.raw_path,
            "query_string": head.query,
            "root_path": "",
            "headers": head.headers,
            "client": (peer.address, port),
            "server": self._server[:2] if self._server else None,
            "state": self._hub.application_state.copy(),
            PEER: peer,
            EXCHANGE: exchange,
            TRANSPORT: self._transport,
        }

    def _ahead(self, data: bytes) -> None:
        """Bytes of a further request, before the answer is complete: kept within a bound, else the connection ends with it.

        Reading goes on, or nobody would notice that the client leaves."""
        if self._can_keep:
            self._unread += data
        if len(self._unread) > AHEAD_BYTES_MAX:
            self._can_keep = False
            self._unread.clear()

    # What an Exchange wants (exchange.Wire).

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
            self._outgoing.wrote(len(data))

    async def writable(self) -> None:
        await self._room.wait()

    def read_on(self) -> None:
        if self._transport is not None and not self._transport.is_reading() and not self._transport.is_closing():
            self._transport.resume_reading()

    def default_headers(self) -> heads.Headers:
        return _dated(int(time.time()))

    def will_close(self) -> bool:
        if self._framing is not None and self._exchange is not None:
            left = self._framing.left
            # Whoever waits for 100 Continue may now send its body, or not: nobody could tell it from the next request.
            if left is None or left > DISCARD_BYTES_MAX or self._exchange.waits_for_continue:
                self._can_keep = False
        return not self._can_keep

    def answered(self, *, keep_alive: bool) -> None:
        self._exchange = None
        self._hub.state.total_requests += 1
        self.places.rest(self.place)
        if self._transport is None or self._transport.is_closing():
            return
        if not keep_alive or not self._can_keep:
            self._end()
            return
        self.read_on()
        if self._framing is not None:
            self._due(Phase.DISCARD, self._limits.body_timeout_s)
        else:
            self._rest()
        self._loop.call_soon(self._advance)

    @property
    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # How it ends.

    def shutdown(self) -> None:
        """The server stops: an answer that is being made is the last one."""
        self._can_keep = False
        if self._exchange is None and self._transport is not None:
            self._transport.close()

    def dismiss(self) -> None:
        """Its place was given to somebody else."""
        self._hub.note("dismissed")
        transport = self._transport
        if self._phase is Phase.IDLE and transport is not None and not transport.get_write_buffer_size():
            transport.close()  # as any idle connection may be closed; its client sees it closed in order
        else:
            self.abort()

    def _rest(self) -> None:
        self._due(Phase.IDLE, self._limits.idle_timeout_s)

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error without asking the application, and close."""
        self._hub.note(error.code)
        if self._exchange is not None:
            # The body of a request that is being answered is not what it should be: there is nothing to tell any more.
            self.abort()
            return
        self.write(rendered(error))
        self._end()

    def _end(self) -> None:
        """Close after what was written. Who still sends is listened to for a moment, so that it can read the answer."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        is_whole = self._framing is None and not self._unread and self._phase is Phase.ANSWER
        self._unread.clear()
        if is_whole or not transport.can_write_eof():
            transport.close()
            return
        self._due(Phase.LINGER, LINGER_S)
        self._framing = None
        self.read_on()
        transport.write_eof()

    # Time.

    def _due(self, phase: Phase, seconds: float) -> None:
        """Set the timer: what the connection waits for next, and for how long."""
        self._phase = phase
        self._deadline_s = self._loop.time() + seconds
        if self._deadline_s < self._timer_s:
            if self._timer is not None:
                self._timer.cancel()
            self._set_timer(seconds)

    def _set_timer(self, seconds: float) -> None:
        self._timer_s = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_s = None, math.inf
        left_s = self._deadline_s - self._loop.time()
        if left_s > 0.001:
            if left_s < math.inf:
                self._set_timer(left_s)
        else:
            self._overdue()

    def _overdue(self) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._phase is Phase.HEAD:
            peer = Peer(self._address[0] if self._address else "", is_forwarded=False)
            self._refuse(self._no_room(peer) if self.place.refused else head_too_slow(self._limits.body_timeout_s))
        elif self._phase is Phase.LINGER and transport.get_write_buffer_size():
            self._set_timer(LINGER_S)  # the answer is still being taken; that has its own time
        elif self._phase is Phase.IDLE:
            transport.close()
        else:
            self._hub.note("body_timeout" if self._phase is Phase.DISCARD else "linger")
            transport.abort()

    def _not_taken(self) -> bool:
        """The client takes too little of what it was sent. Whether that is the end."""
        if self._exchange is not None and self._exchange.has_patience:
            return False
        self._hub.note("not_taken")
        self.abort()
        return True
