"""How far a stream's client is behind: bytes that were written and that it has not taken, and what is done about it.

Such bytes wait in two places: the transport's write buffer, and the socket's send queue, which Linux tells by TIOCOUTQ. A
reader keeps none itself: events are made when there is room for them. Asking the kernel for every event would cost more than
the event; an upper bound is kept instead, and the socket is only asked when that passes the limit.

How long a client was behind adds up over the whole stream, and what it takes works that off: a client that takes a little
each time before its patience ends is stuck, one that is slow all the time is not. (A leaky bucket of time.)"""

import asyncio
import fcntl
import sys
import termios
import time
from array import array

from starlette.types import Scope

from poise.config.serving import ReaderSettings, StreamsSettings
from poise.gateway.records.record import Follower
from poise.metrics.clients import StreamMetrics
from poise.scheduler.request import RequestClass

TRANSPORT = "poise.transport"
"""Where the protocol leaves the connection's transport in the scope."""
POLL_FIRST_S, POLL_MAX_S = 0.02, 0.5
"""A stalled socket is looked at this often, less and less: nothing tells when a client has read."""
POLL_SHARE, POLL_STUCK_S = 1 / 20, 2.0
"""Who has been stuck for long is looked at less often still: hundreds of them are not to cost the others anything."""


class ReaderStuck(Exception):
    """The client was behind for as long as it may be, and has not worked it off."""


def patience(settings: StreamsSettings, request_class: RequestClass) -> ReaderSettings:
    """What a class allows its readers."""
    allowed: ReaderSettings = getattr(settings, request_class.value)
    return allowed


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
        self._written = self._taken = 0
        """Bytes of the stream, and how many of them the client had taken when that was last looked at."""
        self._behind_s = 0.0
        socket = self._transport.get_extra_info("socket") if self._transport is not None else None
        self._fd: int = socket.fileno() if socket is not None else -1

    def wrote(self, n_bytes: int) -> bool:
        """Whether more is unsent now than may be."""
        self._written += n_bytes
        self._unsent_max += n_bytes
        return self._unsent_max > self._limit and self.unsent_bytes() > self._limit

    @property
    def has_room(self) -> bool:
        """Enough was sent that the stream may go on."""
        return self.unsent_bytes() <= self._limit // 2

    def unsent_bytes(self) -> int:
        """What the client has not taken now."""
        if self._transport is None or self._transport.is_closing():
            self._unsent_max = 0
        else:
            self._unsent_max = self._transport.get_write_buffer_size() + send_queue_bytes(self._fd)
        return self._unsent_max

    def was_behind(self, passed_s: float, end_s: float) -> float:
        """Count `passed_s`, less what the client has taken since the last call; returns the seconds of patience that are left.

        The limit's worth of bytes is worth `end_s`: who takes that much in that time, in the mean, is never behind for longer.
        Nothing is saved up. Call it after `unsent_bytes`."""
        taken = max(self._taken, self._written - self._unsent_max)
        worked_off_s = (taken - self._taken) * end_s / self._limit
        self._taken = taken
        self._behind_s = max(0.0, self._behind_s + passed_s - worked_off_s)
        return self._behind_s

    def abort(self) -> None:
        """Close the connection and forget what is unsent."""
        if self._transport is not None:
            self._transport.abort()


async def until_room(outlet: Outlet, follower: Follower, allowed: ReaderSettings, metrics: StreamMetrics) -> None:
    """Wait for a client that is behind, and have the request held meanwhile. Raises ReaderStuck."""
    began_s, pause_s = time.monotonic(), POLL_FIRST_S
    seen_s = began_s
    metrics.n_stalled += 1
    try:
        while not outlet.has_room:
            now_s = time.monotonic()
            behind_s = outlet.was_behind(now_s - seen_s, allowed.stall_end_s)
            if behind_s >= allowed.stall_end_s:
                raise ReaderStuck
            seen_s, stalled_s = now_s, now_s - began_s
            _set_lag(follower, 2 if stalled_s >= allowed.stall_swap_s else 1)
            await asyncio.sleep(min(pause_s, allowed.stall_end_s - behind_s))
            pause_s = min(2 * pause_s, max(POLL_MAX_S, min(POLL_STUCK_S, POLL_SHARE * stalled_s)))
        outlet.was_behind(time.monotonic() - seen_s, allowed.stall_end_s)
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
