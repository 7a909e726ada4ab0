"""The one door of requests: whose it is, which class and model, at which level of the server; a call comes out, ready to start.

A call keeps the books of its request: it is among the live ones from its start on, and its end is counted and put on record.

The order of checks is the order in which they get dear: key, body, parameters, model, class, level, engine, tokens, context."""

import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from poise.gateway.dialect import Dialect
from poise.gateway.http.body import JsonObject
from poise.gateway.models.backend import Backend, Job
from poise.gateway.models.names import ModelNames
from poise.gateway.records.following import Stage
from poise.gateway.records.kept import Records
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import Heading
from poise.gateway.request.generate import Generate
from poise.gateway.request.labels import Label
from poise.gateway.request.refusals import ApiError
from poise.gateway.tenancy.auditing import RequestEntry
from poise.gateway.tenancy.caller import Credentials
from poise.gateway.tenancy.tenants import Tenants
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass

T = TypeVar("T")


class Sender(Protocol):
    """Whoever sends a request, and waits for its answer."""

    @property
    def credentials(self) -> Credentials: ...

    @property
    def traceparent(self) -> str:
        """The sender's span; empty where there is none."""

    @property
    def claim(self) -> Label | None:
        """The label that it gives the request. Raises ApiError where that is none."""

    @property
    def may_fall_back(self) -> bool:
        """Somebody else than the first choice may answer. Raises ApiError where it cannot be told."""

    @property
    def is_detached(self) -> bool:
        """The request goes on when nobody waits for it. Raises ApiError where it cannot be told."""

    async def body(self) -> JsonObject:
        """What was sent. Raises ApiError."""

    async def while_wanted(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is given up when nobody waits for it any more. Raises ClientGone then."""


class Call:
    """A request that was let in, with its job and its record."""

    def __init__(self, record: Record, job: Job, metrics: GatewayMetrics, records: Records) -> None:
        self.record = record
        self.is_late = job.is_late
        self.notes = job.headers
        """What the response is to say of how its prompt was made: header to value."""
        self.ignored = job.ignored
        """Fields of the request that have no effect."""
        self._job: Job | None = job
        """Until it starts."""
        self._metrics = metrics
        self._records = records
        self.entry: RequestEntry | None = None
        """What is put on record of it at its end."""

    def start(self) -> None:
        """Begin. Whoever follows the record hears what comes of it."""
        assert self._job is not None, "it has started"
        job, self._job = self._job, None
        self.record.on_end = self._ended
        self._records.add(self.record)
        job.start(self.record)

    def _ended(self, record: Record) -> None:
        """Nobody comes back for a request that was refused, unless its client has been told an id."""
        refused = record.stage is Stage.REFUSED
        if refused and record.failure is not None:
            tenant = None if record.erased else record.origin.tenant
            self._metrics.rejected(record.origin.request_class, record.failure.code, tenant)
        entry, self.entry = self.entry, None
        if entry is not None:
            entry.ended(record)
        self._records.finish(record, keep=not refused or self.is_late)


@dataclass(eq=False, repr=False)
class Intake:
    """Lets requests in: from what was sent to what is ready to start."""

    names: ModelNames
    """Who answers to which name."""
    _tenants: Tenants
    _metrics: GatewayMetrics
    _records: Records
    _check_level: Callable[[RequestClass], None]

    async def take(self, sender: Sender, dialect: Dialect, entry: RequestEntry) -> Call:
        """Ready for the engine, or ApiError. `entry` learns of it what the audit log is to have; the body is held no longer."""
        arrived_s = time.perf_counter()
        tenant: str | None = None
        try:
            caller = entry.caller = self._tenants.identify(sender.credentials)
            tenant = caller.tenant
            body = await sender.body()
            request = dialect.read(body)
            entry.request_class, entry.stream = request.request_class, request.stream
            backend = self.names.find(request.model)
            self._tenants.check_class(caller, request.request_class)
            self._check_level(request.request_class)
            waits_ms, span, operation = request.queue_timeout_ms, sender.traceparent, dialect.name
            about = (dialect.prompt_param, arrived_s, waits_ms, span, caller.account, caller.is_declared, operation)
            routing = (caller.label, sender.claim, sender.may_fall_back and request.fallback)
            origin = Origin(caller.request_id, tenant, request.request_class, *about, *routing)
            entry.note_prompt(body.get(dialect.prompt_param))
            detached = sender.is_detached or request.background
            preparing = self._prepare(backend, origin, dialect, request, detached=detached)
            call = await (preparing if detached else sender.while_wanted(preparing))
            call.ignored = request.ignored + call.ignored
            self._metrics.ignored(call.ignored)
            if call.is_late:  # a summary is background work, and needs what that needs
                self._tenants.check_class(caller, RequestClass.BACKGROUND, for_summary=True)
                self._check_level(RequestClass.BACKGROUND)
            return call
        except ApiError as error:
            self._metrics.rejected(entry.request_class, error.code, tenant)
            raise

    async def _prepare(self, backend: Backend, origin: Origin, dialect: Dialect, request: Generate, *, detached: bool) -> Call:
        """Everything that can be known before anything is computed. Raises ApiError."""
        job = await backend.prepare(request, origin)
        heading = Heading(
            response_id=dialect.id_prefix + secrets.token_hex(12),
            created=int(time.time()),
            model=backend.card.name,
            fingerprint=job.fingerprint,
        )
        record = Record(origin, heading, job.n_choices, dialect.writer, request.answer, detached=detached)
        return Call(record, job, self._metrics, self._records)
