"""Whether a client takes what it is sent, whatever that is.

The transport's buffer and the kernel's send queue together say how much of what was written a client has not taken. What was
unsent at one look has to be gone by the next, or as much of it as a slow line can carry: who takes a byte a minute takes nothing.
"""

import asyncio
from collections.abc import Callable

from poise.gateway.http.backpressure import send_queue_bytes

TAKEN_PER_S = 512
"""A client must take an answer at least so fast."""


class Outgoing:
    """What one connection has written and its client has not taken."""

    def __init__(self, not_taken: Callable[[], bool], look_s: float) -> None:
        """`not_taken` is called when too little was taken in `look_s`; it says whether that was the end."""
        self._not_taken = not_taken
        self._look_s = look_s
        self._transport: asyncio.WriteTransport | None = None
        self._fd = -1
        self._written = 0
        self._taken = self._owed = 0
        """At the last look: what the client had taken, and what was unsent."""
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        socket = transport.get_extra_info("socket")
        self._fd = socket.fileno() if socket is not None else -1

    def end(self) -> None:
        """The connection is gone."""
        # A timer that outlives the connection must not keep it alive.
        self._transport, self._not_taken = None, lambda: True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def wrote(self, n_bytes: int) -> None:
        self._written += n_bytes
        if self._timer is None:
            self._taken, self._owed = self._written - n_bytes, n_bytes
            self._set_timer()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._look_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._transport is None:
            return
        unsent = self._transport.get_write_buffer_size() + send_queue_bytes(self._fd)
        if unsent == 0:
            return
        taken = self._written - unsent
        must = min(self._owed, max(1, int(TAKEN_PER_S * self._look_s)))
        if taken - self._taken < must and self._not_taken():
            return
        self._taken, self._owed = taken, unsent
        self._set_timer()
