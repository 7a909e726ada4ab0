"""One API request on its way through another server: a place in the queue, money set aside, a permit, and then its answer, event
by event, into the record.

As long as nothing of an answer has come the record knows nothing of this server, and another one may be asked: `run` raises
NotAnswered. With the first content the record is open, and from then on it ends here, once, whatever happens."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType

from poise.config.hybrid import BackendSettings
from poise.config.settings import SamplingSettings
from poise.gateway.models.egress.door import Call, Egress, EgressError, Reply
from poise.gateway.models.egress.permit import Permit
from poise.gateway.models.money.ledger import Ledger, Reservation
from poise.gateway.models.money.prices import Tokens
from poise.gateway.models.remote.breaker import Breaker, Pass
from poise.gateway.models.remote.events import INCOMPLETE, NO_ANSWER, TOO_LARGE, Event, Failed, Used
from poise.gateway.models.remote.queue import Ticket
from poise.gateway.models.remote.refusals import locked, may_answer_elsewhere, of_egress, of_failure, unavailable
from poise.gateway.models.remote.turns import Turns
from poise.gateway.models.remote.written import Written
from poise.gateway.records.following import Stop
from poise.gateway.records.record import CANCELLED, Record
from poise.gateway.records.values import Bill
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.refusals import ApiError, server_stopping
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.story import Outcome
from poise.scheduler.request import Hold
from poise.wire.text import said

log = logging.getLogger(__name__)

REST_S = 2.0
"""How long the server may take to tell what an answer took that is complete."""
TOKEN_CHARS = 4
"""About as many has a token of English text."""
NOTHING_USED = Tokens(0, 0, 0)
UNCLEAR = (NO_ANSWER, INCOMPLETE, TOO_LARGE)
"""Failures after which nobody knows what the server has computed; one that it tells itself, at first, is for free."""


class NotAnswered(Exception):
    """Nothing of an answer has come, and nothing of it is in the record: `is_retryable` means that another backend may be asked.

    `error`: what the client is told if none is."""

    def __init__(self, error: ApiError, *, is_retryable: bool) -> None:
        super().__init__(error.message)
        self.error, self.is_retryable = error, is_retryable


@dataclass(eq=False, slots=True)
class Server:
    """What an answer needs of the server that it comes from. `format`: the module that writes and reads what it speaks."""

    name: str
    settings: BackendSettings
    sampling: SamplingSettings
    capabilities: frozenset[str]
    format: ModuleType
    egress: Egress
    ledger: Ledger
    metrics: GatewayMetrics
    turns: Turns
    breaker: Breaker


class RemoteAnswer:
    """All choices of one API request."""

    def __init__(
        self, server: Server, request: Generate, model: str, max_output: int, record: Record, permit_of: Callable[[], Permit]
    ) -> None:
        """`max_output`: of each choice. `permit_of` is asked right before the request is sent."""
        self._server, self._request, self._model, self._max_output = server, request, model, max_output
        self._record, self._permit_of, self._metrics = record, permit_of, server.metrics
        record.wants_logprobs |= request.sampling.n_logprobs >= 0
        self._written = Written(server.name, record, server.metrics, request.stop, max_output)
        origin = record.origin
        self._ticket = Ticket(
            origin.account or origin.tenant,
            origin.request_class,
            about_tokens(request),
            origin.is_declared,
            origin.queue_timeout_ms * 1000,
        )
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._task: asyncio.Task[None] | None = None
        self._used: Used | None = None
        self._passed: Pass | None = None
        """Leave of the breaker, until it has heard what came of it."""
        self.ignored: tuple[str, ...] = ()
        """Fields of the request that have no effect there, once it is sent."""

    async def run(self) -> None:
        """See the module's text. Once."""
        if self._record.is_ended:
            return
        self._task = asyncio.current_task()
        try:
            await self._run()
        except asyncio.CancelledError:
            if self._record.stopped_by is None:
                self._cut_off()
                raise
            if self._task is not None and self._task.uncancel():
                raise
        except NotAnswered:
            self._written.forget()
            raise
        finally:
            self._task = None
            used = self._used
            self._server.turns.leave(self._ticket, used.prompt + used.output if used is not None else 0)

    def stop(self, why: Stop) -> None:
        """End what has not ended; what has come stays. The connection is closed at once. See `Work.stop`."""
        record = self._record
        if record.is_ended:
            return
        if why is Stop.LEFT:
            self._metrics.disconnected(record.origin.request_class)
        record.stopped_by = why
        self._written.end_all(CANCELLED, why.value if why is Stop.READER_TIMEOUT else CANCELLED)
        self._written.close(None)
        if self._task is not None:
            self._task.cancel()

    def hold(self, level: Hold) -> None:
        """Read nothing more while all readers are behind: the server's connection fills up, and it has to wait."""
        was_free = self._may_read.is_set()
        self._metrics.streams.held(self._record.origin.request_class, level)
        (self._may_read.set if level is Hold.RUN else self._may_read.clear)()
        if was_free is not self._may_read.is_set():
            self._written.hold(runs=not was_free)

    def requests(self) -> list[tuple[int, int]]:
        """None: no engine of this host computes anything for it."""
        return []

    async def _run(self) -> None:
        server, record = self._server, self._record
        try:
            await server.turns.take(self._ticket, self._written.tell_place)
            self._passed = self._pass()
            try:
                refusal = await self._ask()
            finally:
                if self._passed is not None:
                    server.breaker.gave_up(self._passed)
        except ApiError as error:
            raise NotAnswered(error, is_retryable=error.code != "queue_timeout") from None
        if record.is_ended:
            return
        if refusal is not None and not self._written.is_complete:
            self._written.fail(refusal)
        else:
            self._written.close(None)

    def _pass(self) -> Pass:
        """Raises ApiError where the breaker lets nobody through."""
        breaker, now_s = self._server.breaker, time.monotonic()
        passed = breaker.take(now_s)
        if passed is None:
            if (wait_s := breaker.wait_s(now_s)) is None:
                raise locked(self._server.name)
            raise unavailable(self._server.name, "has failed again and again and is left alone for a while", wait_s)
        return passed

    async def _ask(self) -> ApiError | None:
        """Set money aside, send it and write what comes. Returns what went wrong after the first content; raises NotAnswered, or
        ApiError, before it."""
        server, origin = self._server, self._record.origin
        path, body, ignored = server.format.body(
            self._request,
            self._model,
            stream=True,
            max_tokens=self._max_output,
            can=server.capabilities,
            defaults=server.sampling,
        )
        self.ignored = tuple(ignored)
        # A token has a byte at least, and what stands around a message in the body more of them than tokens in a prompt.
        n_output_max = self._max_output * len(self._record.choices)
        money = await server.ledger.reserve(origin.tenant, server.name, origin.request_id, len(body), n_output_max)
        is_sent, is_free = False, False
        try:
            permit = self._permit_of()
            is_sent = True
            return await self._exchange(permit, Call(path, body, model=self._model), money)
        except EgressError as error:
            log.warning("[%s] %s", origin.request_id, error)
            is_sent, is_free = error.is_sent, error.kind in ("status", "redirect")
            self._tell_breaker(error)
            refusal = of_egress(server.name, self._model, error)
            if not self._record.is_open:
                raise NotAnswered(refusal, is_retryable=error.kind != "status" or error.is_retryable) from None
            return refusal
        finally:
            if not is_sent:
                server.ledger.release(money)
            else:  # without effect where it was settled; whoever answers with an error has computed nothing
                await asyncio.shield(server.ledger.settle(money, NOTHING_USED if is_free else None))

    async def _exchange(self, permit: Permit, call: Call, money: Reservation) -> ApiError | None:
        """As `_ask`. Raises EgressError, too."""
        server, failed = self._server, None
        async with server.egress.send(permit, call) as reply:
            self._written.begin(self._ticket.wait_us)
            try:
                failed = await self._read(reply)
            finally:
                if failed is not None and failed.code not in UNCLEAR and not self._record.is_open:
                    self._used = self._used or Used(0, 0, 0)
                await self._settle(money, permit, reply)
            reply.outcome = "broken" if failed is not None else reply.outcome
        if failed is None:
            return None
        refusal = of_failure(server.name, self._model, failed)
        if not self._record.is_open:
            raise NotAnswered(refusal, is_retryable=may_answer_elsewhere(failed))
        return refusal

    async def _read(self, reply: Reply) -> Failed | None:
        """Write what comes, until all of it is there."""
        events = self._server.format.Events(len(self._record.choices))
        chunks = reply.chunks()
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as limit:
                while True:
                    if not self._written.is_complete:
                        await self._may_read.wait()
                    data = await anext(chunks, b"")
                    if failed := self._write(events.feed(data) if data else events.end(), reply):
                        return failed
                    if not data or events.is_over or self._written.is_cut:
                        return None
                    if self._written.is_complete and limit.when() is None:
                        limit.reschedule(asyncio.get_running_loop().time() + REST_S)
        return None

    def _write(self, events: Sequence[Event], reply: Reply) -> Failed | None:
        try:
            for event in events:
                if isinstance(event, Failed):
                    if self._written.is_complete:
                        return None
                    self._tell_breaker(event)
                    return event
                if isinstance(event, Used):
                    self._used = event
                    continue
                if not self._record.is_open:
                    self._open()
                reply.progressed()
                self._written.put(event)
            return None
        finally:
            self._record.notify()

    def _open(self) -> None:
        """The first content is here."""
        passed, self._passed = self._passed, None
        if passed is not None:
            self._server.breaker.succeeded(passed)
        n_prompt = self._used.prompt if self._used is not None else self._ticket.n_prompt
        structure = self._request.structure
        self._written.open(n_prompt, self._ticket.wait_us, structure.kind if structure is not None else "")

    def _tell_breaker(self, what: EgressError | Failed) -> None:
        """What went wrong, unless it says nothing of the server."""
        if self._written.is_complete or (isinstance(what, EgressError) and what.kind in ("closed", "no_audit")):
            return
        breaker, status = self._server.breaker, what.status
        passed, self._passed = self._passed or Pass(is_probe=False), None
        if status is not None and 400 <= status < 500 and status not in (401, 403, 408, 429):
            breaker.succeeded(passed)
            return
        retry_after_s = what.retry_after_s if isinstance(what, EgressError) else None
        breaker.failed(passed, time.monotonic(), status=status, retry_after_s=retry_after_s)

    async def _settle(self, money: Reservation, permit: Permit, reply: Reply) -> None:
        """What it took, as far as its server has told; else all that was set aside is charged."""
        used, record = self._used, self._record
        tokens = None
        if used is not None:
            is_whole = self._written.is_complete and not self._written.is_cut and record.stopped_by is None
            n_output = used.output if is_whole or not record.is_open else max(used.output, self._written.most_output())
            tokens = Tokens(used.prompt, used.cached, n_output)
        cost_nano = await asyncio.shield(self._server.ledger.settle(money, tokens))
        if record.is_open:
            n_prompt, n_cached, n_output = tokens or (record.n_prompt, 0, record.n_tokens)
            record.bill = Bill(
                backend=self._server.name,
                label=permit.label.shown,
                reason=permit.reason,
                prompt_tokens=n_prompt,
                cached_tokens=n_cached,
                output_tokens=n_output,
                cost_nano=cost_nano,
                is_known=tokens is not None,
                price_version=self._server.settings.price_version,
            )
        if tokens is not None:
            reply.settle(tokens, cost_nano)
        if used is not None and record.is_open and not record.is_ended:
            self._written.tell_usage(used)

    def _cut_off(self) -> None:
        """Whoever runs it has ended it, because the server stops: an answer that has begun was cut, and is no failure."""
        if self._record.is_ended:
            return
        if self._record.is_open:
            self._written.end_all(Outcome.SERVER_STOPPING.value, Outcome.SERVER_STOPPING.value)
            self._written.close(None)
        else:
            self._written.close(server_stopping())


def about_tokens(request: Generate) -> int:
    """About as many has its prompt, its tools included."""
    prompt = request.prompt
    if isinstance(prompt, Conversation):
        n_chars = sum(len(said(message)) + len(message.reasoning or "") for message in prompt.messages)
        n_chars += sum(len(str(tool.as_shown())) for tool in request.tools.offered)
        return n_chars // TOKEN_CHARS + len(prompt.messages)
    return sum(len(one) // TOKEN_CHARS if isinstance(one, str) else len(one) for one in prompt)
