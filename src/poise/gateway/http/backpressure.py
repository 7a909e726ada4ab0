"""How far a stream's client is behind: bytes that were written and that it has not taken, and what is done about it.

Such bytes wait in two places: the transport's write buffer, and the socket's send queue, which Linux tells by TIOCOUTQ. A
reader keeps none itself: events are made when there is room for them. Asking the kernel for every event would cost more than
the event; an upper bound is kept instead, and the socket is only asked when that passes the limit.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
import time
from array import array
from dataclasses import dataclass

from starlette.types import Scope

from poise.config import ReaderSettings, StreamsSettings
from poise.gateway.record import Follower
from poise.metrics.streams import StreamMetrics
from poise.scheduler.request import RequestClass

TRANSPORT = "poise.transport"
"""Where the protocol leaves the connection's transport in the scope."""
POLL_FIRST_S, POLL_MAX_S = 0.02, 0.5
"""A stalled socket is looked at this often, less and less: nothing tells when a client has read."""
POLL_SHARE, POLL_STUCK_S = 1 / 20, 2.0
"""Who has been stuck for long is looked at less often still: hundreds of them are not to cost the others anything."""
CHUNK_BYTES = 8192
"""A stream is given about that much at once."""


class ReaderStuck(Exception):
    """The client has taken nothing for as long as it may."""


@dataclass(frozen=True, slots=True)
class Patience:
    """What a class allows its readers."""

    unsent_bytes_max: int
    stall_swap_s: float
    stall_end_s: float


def patience(settings: StreamsSettings, request_class: RequestClass) -> Patience:
    chosen: ReaderSettings = getattr(settings, request_class.value)
    return Patience(chosen.unsent_bytes_max, chosen.stall_swap_s, chosen.stall_end_s)


def high_water(settings: StreamsSettings) -> int:
    """A write buffer's mark above which the server itself waits: out of reach of a stream, which stops earlier by itself."""
    return 65_536 + max(settings.interactive.unsent_bytes_max, settings.background.unsent_bytes_max)


class Outlet:
    """The way of one stream to its client."""

    def __init__(self, scope: Scope, limit: int) -> None:
        self._transport: asyncio.WriteTransport | None = scope.get(TRANSPORT)
        self._limit = limit
        self._unsent_max = 0
        """There are at most so many unsent bytes."""
        socket = self._transport.get_extra_info("socket") if self._transport is not None else None
        self._fd: int = socket.fileno() if socket is not None else -1

    def wrote(self, n_bytes: int) -> bool:
        """Whether more is unsent now than may be."""
        self._unsent_max += n_bytes
        return self._unsent_max > self._limit and self.unsent_bytes() > self._limit

    @property
    def has_room(self) -> bool:
        """So much was sent that it is worth going on."""
        return self.unsent_bytes() <= self._limit // 2

    def unsent_bytes(self) -> int:
        """What the client has not taken now."""
        if self._transport is None or self._transport.is_closing():
            self._unsent_max = 0
        else:
            self._unsent_max = self._transport.get_write_buffer_size() + send_queue_bytes(self._fd)
        return self._unsent_max

    def abort(self) -> None:
        """Close the connection and forget what is unsent."""
        if self._transport is not None:
            self._transport.abort()


async def until_room(outlet: Outlet, follower: Follower, allowed: Patience, metrics: StreamMetrics) -> None:
    """Wait for a client that is behind, and have the request held meanwhile. Raises ReaderStuck."""
    began_s, pause_s = time.monotonic(), POLL_FIRST_S
    metrics.n_stalled += 1
    try:
        while not outlet.has_room:
            stalled_s = time.monotonic() - began_s
            if stalled_s >= allowed.stall_end_s:
                raise ReaderStuck
            _set_lag(follower, 2 if stalled_s >= allowed.stall_swap_s else 1)
            await asyncio.sleep(min(pause_s, allowed.stall_end_s - stalled_s))
            pause_s = min(2 * pause_s, max(POLL_MAX_S, min(POLL_STUCK_S, POLL_SHARE * stalled_s)))
    finally:
        metrics.n_stalled -= 1
    _set_lag(follower, 0)


def _set_lag(follower: Follower, lag: int) -> None:
    if follower.lag != lag:
        follower.lag = lag
        follower.record.review()


def send_queue_bytes(fd: int) -> int:
    """Bytes in the socket that the other side has not acknowledged; 0 where that cannot be asked."""
    if fd < 0 or sys.platform != "linux":
        return 0
    found = array("i", [0])
    try:
        fcntl.ioctl(fd, termios.TIOCOUTQ, found)
    except OSError:
        return 0
    return found[0]
