"""The queue before another server on the clock of the event loop: waiting for a turn, and where one stands meanwhile."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from poise.gateway.models.remote.queue import Place, SlotQueue, Ticket
from poise.gateway.models.remote.refusals import not_queued, queue_timeout

TELL_S = 1.0
"""Places are told once in this time."""
_RETRY_S = 5.0
Tell = Callable[[Place], None]


class Turns:
    """Of one server. Nothing of it wakes while nobody waits."""

    def __init__(self, backend: str, queue: SlotQueue, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.queue = queue
        self._backend, self._clock = backend, clock
        self._waiting: dict[Ticket, tuple[asyncio.Future[bool], Tell]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, ticket: Ticket, tell: Tell) -> None:
        """Returns when the ticket has its slot, which `leave` gives back in every case. Raises ApiError. `tell` hears of its
        place as soon as it has to wait, and then once in a while."""
        refusal = self.queue.enter(ticket, self._clock())
        if refusal is not None:
            raise not_queued(self._backend, ticket.request_class, refusal)
        self._begin()
        if ticket.began_ns is not None:
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = turn, tell
        for place in self.queue.places():
            if place.ticket is ticket:
                tell(place)
        self._set_timer()
        try:
            if not await turn:
                raise queue_timeout(self._backend, ticket.timeout_us / 1e6, max(_RETRY_S, ticket.eta_us / 1e6))
        finally:
            self._waiting.pop(ticket, None)

    def leave(self, ticket: Ticket, n_tokens: int = 0) -> None:
        """It is over, or is to wait no more. Any number of times."""
        self.queue.leave(ticket, self._clock(), n_tokens)
        self._begin()

    def _begin(self) -> None:
        for ticket in self.queue.begin(self._clock()):
            self._answer(ticket, begins=True)

    def _answer(self, ticket: Ticket, *, begins: bool) -> None:
        if ticket in self._waiting:
            turn, _ = self._waiting.pop(ticket)
            if not turn.done():
                turn.set_result(begins)

    def _set_timer(self) -> None:
        if self._timer is not None or not self._waiting:
            return
        expires_ns, delay_s = self.queue.next_expiry_ns(), TELL_S
        if expires_ns is not None:
            delay_s = min(TELL_S, max(0.0, (expires_ns - self._clock()) / 1e9))
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        for ticket in self.queue.expire(self._clock()):
            self._answer(ticket, begins=False)
        self._begin()
        for place in self.queue.places():
            with suppress(KeyError):
                self._waiting[place.ticket][1](place)
        self._set_timer()
