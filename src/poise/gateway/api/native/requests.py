"""What a caller does with requests of its own after sending them: look, cancel, take up their stream again, erase. And which
templates it may use for the next one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise.config import Settings
from poise.config.classes import class_settings
from poise.gateway.api.native.views import Explanation, RequestMoment, choice_view_of, explanation_of, timeline_of, view_of
from poise.gateway.api.openai.completion_types import EVENTS, FinishReason
from poise.gateway.api.operation import Described, Operation, parameter
from poise.gateway.explain.explainer import Explainer
from poise.gateway.http.backpressure import patience
from poise.gateway.http.connections.peers import credentials_of
from poise.gateway.http.stream import EventStream
from poise.gateway.models.local.templates import Templates
from poise.gateway.records.following import Stop
from poise.gateway.records.kept import Records
from poise.gateway.records.moments import ChoiceState
from poise.gateway.records.reader import Reader, read_place
from poise.gateway.records.record import Record
from poise.gateway.records.values import TokenUsage
from poise.gateway.request.refusals import ApiError, ErrorDetail, not_possible, response_not_found
from poise.gateway.tasks.slices import in_turns
from poise.gateway.tenancy.tenants import Tenants
from poise.metrics.clients import StreamMetrics
from poise.scheduler.request import RequestClass

LISTED_MAX = 100
_HAS = "Output tokens that the caller has: the `id` of the last event it saw."
_PLACES = [
    parameter("from", _HAS, {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,3})?$"}),
    # Empty: it saw none.
    parameter("Last-Event-ID", _HAS, {"type": "string", "pattern": r"^([0-9]{1,9}(\.[0-9]{1,3})?)?$"}, "header"),
]


class RequestSummary(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    """A request without its text."""

    id: str
    object: Literal["request"] = "request"
    request_id: str
    created: int
    class_: str
    background: bool
    state: ChoiceState
    outcome: str | None
    error: ErrorDetail | None
    age_ms: int
    usage: TokenUsage


class RequestList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[RequestSummary]


class RequestChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    state: ChoiceState
    tokens: int
    text: str | None
    finish_reason: FinishReason | None
    outcome: str | None


class RequestReport(RequestSummary, frozen=True, kw_only=True):
    timeline: list[RequestMoment]
    choices: list[RequestChoice]


class EraseResult(msgspec.Struct, frozen=True):
    id: str
    tokens: int
    bytes: int


class TemplateCard(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    object: Literal["template"] = "template"
    tokens: int | None
    kept: bool


class TemplateList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[TemplateCard]


@dataclass(eq=False, repr=False)
class Requests:
    """Answers /v1/requests and /v1/templates. Another tenant's request looks like one that never was."""

    _settings: Settings
    _tenants: Tenants
    _records: Records
    _metrics: StreamMetrics
    _explainer: Explainer
    _templates: Templates

    def operations(self) -> Sequence[Operation]:
        path = "/v1/requests/{request_id}"
        listed = "List the caller's requests, the newest first, without their text"
        stands = "How a request stands, or ended, with its text so far"
        cancel = "End a request; what there is of its result is kept"
        why = "Why a request took as long as it did, without its text"
        again = "The events of a request, running or ended, from a place on"
        named = "List the templates that the caller may use"
        events, errors = {200: Described(None, "The events.", EVENTS)}, [400, 401, 403, 404]
        return [
            Operation("GET", "/v1/requests", self.list, listed, [401]),
            Operation("GET", path, self.get, stands, [401, 404]),
            Operation("DELETE", path, self.erase, "Erase a request that has ended", [401, 404, 409]),
            Operation("POST", f"{path}/cancel", self.cancel, cancel, [401, 404]),
            Operation("GET", f"{path}/explanation", self.explanation, why, [401, 404]),
            Operation("GET", f"{path}/stream", self.stream, again, errors, _PLACES, answers=events),
            Operation("GET", "/v1/templates", self.templates, named, [401, 503], headers={}),
        ]

    async def list(self, request: Request) -> RequestList:
        """The caller's own, the newest first, without their text."""
        newest = islice(self._records.of_tenant(self._tenants.identify(credentials_of(request)).tenant), LISTED_MAX)
        return RequestList(data=[RequestSummary(**_summary(record)) for record in newest])

    async def get(self, request: Request) -> RequestReport:
        record, tenant = self._found(request)
        return await _report(record, text_shown=tenant is not None)

    async def explanation(self, request: Request) -> Explanation:
        """Why it took as long as it did."""
        return explanation_of(self._explainer.explain(*self._found(request)))

    async def cancel(self, request: Request) -> RequestReport:
        """End it, in whatever state it is. One that has ended stays as it is."""
        record, tenant = self._found(request)
        if record.work is not None:
            record.work.stop(Stop.CANCELLED)
        return await _report(record, text_shown=tenant is not None)

    async def stream(self, request: Request) -> Response:
        """Its events after those that the caller has. They are text: none for an operator."""
        record, tenant = self._found(request)
        if tenant is None:
            message = "An admin key reads no text of a tenant. GET /admin/requests/ID tells how the request stands."
            raise ApiError(403, "text_is_the_tenants", message)
        # A client that reconnects by itself repeats the query: the header is newer.
        last, since = request.headers.get("last-event-id"), request.query_params.get("from", "0")
        place = read_place(last, "Last-Event-ID", record) if last else read_place(since, "from", record)
        request_class = RequestClass.BACKGROUND if record.downgraded else record.origin.request_class
        self._metrics.reattached(request_class)
        delay_s = class_settings(self._settings, request_class).pacing_ms / 1000
        comment_s = self._settings.streams.comment_s
        reader = Reader(record, self._metrics, delay_s=delay_s, comment_s=comment_s, place=place, has_ids=True)
        return EventStream(reader, patience(self._settings.streams, request_class), self._metrics)

    async def erase(self, request: Request) -> EraseResult:
        record, _ = self._found(request)
        if not record.is_ended:
            raise not_possible("erase", record.response_id, "it has not ended; cancel it first")
        self._records.drop(record)
        return EraseResult(record.response_id, record.n_tokens, record.n_bytes)

    async def templates(self, request: Request) -> TemplateList:
        """Those that the caller may use."""
        known = self._templates.of_tenant(self._tenants.identify(credentials_of(request)).tenant).items()
        return TemplateList(data=[TemplateCard(name=name, tokens=n, kept=kept) for name, (n, kept) in known])

    def _found(self, request: Request) -> tuple[Record, str | None]:
        """What the caller named, and its tenant; None for an operator, who finds everybody's and reads nobody's text."""
        wanted = request.path_params["request_id"]
        credentials = credentials_of(request)
        tenant = None if self._tenants.is_admin(credentials) else self._tenants.identify(credentials).tenant
        record = self._records.find(wanted, tenant)
        if record is None:
            raise response_not_found(wanted)
        return record, tenant


def _summary(record: Record) -> dict[str, Any]:
    return view_of(record) | {
        "created": record.heading.created,
        "background": record.detached,
        "outcome": record.outcome,
        "error": None if record.failure is None else record.failure.detail(),
        "usage": record.usage().as_sent(),
    }


async def _report(record: Record, *, text_shown: bool) -> RequestReport:
    """Everything that there is of a request, but its prompt, which is not kept."""
    texts = [answer.text if text_shown else None for answer in await in_turns(record.gather())]
    choices = [
        RequestChoice(**choice_view_of(record, choice), tokens=choice.n_output, text=text)
        for choice, text in zip(record.choices, texts, strict=True)
    ]
    return RequestReport(**_summary(record), timeline=timeline_of(record), choices=choices)
