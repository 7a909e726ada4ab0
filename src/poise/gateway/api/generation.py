"""The endpoint of every dialect: an HTTP request through the intake to a call, and its record to a response.

Nothing is sent before the engine has taken every choice, so that a refusal is an ordinary HTTP error also for a stream. The one
exception is a stream whose older turns must be summarized first, because that takes a while. Then the headers of a stream go out,
with the role of who will speak, before its prompt is computed: whoever waits for them knows that they are served."""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from poise.config import Settings
from poise.config.classes import class_settings
from poise.gateway.api.fields import Schema
from poise.gateway.api.operation import Operation, Spoken
from poise.gateway.dialect import Dialect
from poise.gateway.http.backpressure import patience
from poise.gateway.http.body import JsonObject, read_json
from poise.gateway.http.connections.peers import credentials_of
from poise.gateway.http.replies import json_of
from poise.gateway.http.stream import EventStream, while_connected
from poise.gateway.intake import Call, Intake
from poise.gateway.models.routing.labels import claimed
from poise.gateway.records.reader import Reader
from poise.gateway.records.record import Follower
from poise.gateway.request import headers as names
from poise.gateway.request.labels import Label
from poise.gateway.request.refusals import invalid_value
from poise.gateway.tasks.slices import in_turns
from poise.gateway.tenancy.auditing import Audit
from poise.gateway.tenancy.caller import Credentials
from poise.metrics.clients import StreamMetrics

T = TypeVar("T")

TRACEPARENT_CHARS = 55
"""Of version 00 of W3C Trace Context, which later ones begin with."""


class HttpSender:
    """Who sends a request over HTTP."""

    def __init__(self, request: Request, settings: Settings) -> None:
        self._request = request
        self._server = settings.server

    @property
    def credentials(self) -> Credentials:
        return credentials_of(self._request)

    @property
    def traceparent(self) -> str:
        return traceparent_of(self._request.headers)

    @property
    def is_detached(self) -> bool:
        value = self._request.headers.get(names.DETACH, "0")
        if value not in ("0", "1"):
            raise invalid_value(names.DETACH, 'be "1", or be left out', value)
        return value == "1"

    @property
    def claim(self) -> Label | None:
        return claimed(self._request.headers.get(names.DATA_CLASS, ""))

    @property
    def may_fall_back(self) -> bool:
        value = self._request.headers.get(names.NO_FALLBACK, "0")
        if value not in ("0", "1", "true", "false"):
            raise invalid_value(names.NO_FALLBACK, 'be "1", or be left out', value)
        return value in ("0", "false")

    async def body(self) -> JsonObject:
        return await read_json(self._request, self._server.max_body_bytes, self._server.body_timeout_s)

    async def while_wanted(self, work: Coroutine[Any, Any, T]) -> T:
        return await while_connected(self._request.receive, work)


@dataclass(eq=False, repr=False)
class Generation:
    """Answers in every dialect, each at its path."""

    _settings: Settings
    _intake: Intake
    _metrics: StreamMetrics
    _audit: Audit
    spoken: Sequence[Spoken]

    def operations(self) -> list[Operation]:
        return [self._operation(spoken) for spoken in self.spoken]

    def _operation(self, spoken: Spoken) -> Operation:
        dialect = spoken.dialect

        async def answer(request: Request) -> Response:
            return await self._answer(request, dialect)

        answer.__name__ = spoken.name
        return Operation(
            "POST",
            spoken.path,
            answer,
            spoken.summary,
            errors=[400, 401, 403, 404, 408, 413, 429, 500, 502, 503],
            request=self._described(dialect.schema()),
            answers=spoken.answers,
            dialect=dialect,
        )

    def _described(self, body: Schema) -> Schema:
        """A request's schema, with the names of models that there are."""
        exact, properties = self._intake.names.exact, body["properties"]
        known = {} if exact is None else {"enum": [*exact, None]}
        return body | {"properties": properties | {"model": properties["model"] | known}}

    async def _answer(self, request: Request, dialect: Dialect) -> Response:
        sender = HttpSender(request, self._settings)
        with self._audit.begin(sender.credentials.request_id, request.scope["path"]) as entry:
            call = await self._intake.take(sender, dialect, entry)
        call.entry = entry
        if entry.stream:
            return await self._stream(request, call)
        follower = Follower(call.record)
        try:
            call.start()
            await while_connected(request.receive, follower.ended())
        finally:
            follower.leave()
        record = call.record
        answers = await in_turns(record.gather())
        return await json_of(record.body(answers), headers_of(call))

    async def _stream(self, request: Request, call: Call) -> Response:
        """The event stream. Nothing is left behind even if this task is cancelled just as the engine has accepted."""
        origin, streams = call.record.origin, self._metrics
        delay_s = class_settings(self._settings, origin.request_class).pacing_ms / 1000
        comment_s, has_ids = self._settings.streams.comment_s, wants_ids(request.headers, call)
        reader = Reader(call.record, streams, delay_s=delay_s, comment_s=comment_s, has_ids=has_ids)
        try:
            call.start()
            if not call.is_late:
                await while_connected(request.receive, reader.opened())
        except BaseException:
            reader.leave()
            raise
        return EventStream(reader, patience(self._settings.streams, origin.request_class), streams, headers_of(call))


def wants_ids(headers: Mapping[str, str], call: Call) -> bool:
    """Whether the events of a stream have ids: the client may come back for it, or says that it knows server-sent events."""
    return call.record.detached or "text/event-stream" in headers.get("accept", "") or "last-event-id" in headers


def headers_of(call: Call) -> dict[str, str]:
    """The response's own headers: its id, what was ignored, and the estimated wait if that is long enough to matter."""
    headers, accepted = {names.RESPONSE_ID: call.record.response_id, **call.notes}, call.record.accepted
    if call.ignored:
        headers[names.IGNORED] = names.list_ignored(call.ignored)
    if accepted is not None and accepted.eta_us >= names.LONG_WAIT_US:
        headers |= {names.QUEUE_POSITION: str(accepted.position), names.QUEUE_ETA: str(accepted.eta_us // 1000)}
    return headers


def traceparent_of(headers: Mapping[str, str]) -> str:
    """The caller's span; nothing where it is no such header, which could be of any length."""
    value = headers.get("traceparent", "")
    return value if len(value) <= TRACEPARENT_CHARS else ""
