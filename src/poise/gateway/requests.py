"""What a caller does with requests of its own after sending them: look, cancel, take up their stream again, erase."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from poise.config import Settings
from poise.config.classes import class_settings
from poise.gateway import schemas
from poise.gateway.answer_schemas import TokenUsage
from poise.gateway.api.native.explanations import Explanation, explanation_of
from poise.gateway.api.native.timeline import RequestMoment, timeline_of
from poise.gateway.errors import ApiError, not_possible, response_not_found
from poise.gateway.explanations import Explainer
from poise.gateway.http.backpressure import patience
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.replies import fresh_json
from poise.gateway.http.stream import EventStream
from poise.gateway.reader import Place, Reader, read_place
from poise.gateway.record import CANCELLED, ENDED, Record
from poise.gateway.records import Records
from poise.gateway.schemas import Closed, ErrorDetail
from poise.gateway.slices import in_turns
from poise.gateway.tenants import Tenants
from poise.gateway.values import Answer
from poise.metrics.streams import StreamMetrics
from poise.scheduler.request import RequestClass


class RequestSummary(Closed):
    """A request without its text."""

    id: str
    object: Literal["request"]
    request_id: str
    created: int
    class_: str = Field(alias="class")
    background: bool
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    outcome: str | None
    error: ErrorDetail | None
    age_ms: int
    usage: TokenUsage


class RequestList(Closed):
    object: Literal["list"]
    data: list[RequestSummary]


class RequestChoice(Closed):
    index: int
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    tokens: int
    text: str | None
    finish_reason: Literal["stop", "length", "cancelled"] | None
    outcome: str | None


class RequestReport(RequestSummary):
    timeline: list[RequestMoment]
    choices: list[RequestChoice]


class EraseResult(Closed):
    id: str
    tokens: int
    bytes: int


PLACES: list[dict[str, Any]] = [
    {
        "name": name,
        "in": where,
        "description": "Output tokens that the caller has: the `id` of the last event it saw.",
        "schema": {"type": "string", "pattern": pattern},
    }
    for name, where, pattern in (
        ("from", "query", r"^[0-9]{1,9}(\.[0-9]{1,3})?$"),
        ("Last-Event-ID", "header", r"^([0-9]{1,9}(\.[0-9]{1,3})?)?$"),  # empty: it saw none
    )
]


LISTED_MAX = 100


class Requests:
    """Answers /v1/requests. Another tenant's request looks like one that never was."""

    def __init__(
        self, settings: Settings, tenants: Tenants, records: Records, metrics: StreamMetrics, explainer: Explainer
    ) -> None:
        self._settings = settings
        self._tenants = tenants
        self._records = records
        self._metrics = metrics
        self._explainer = explainer

    async def list(self, request: Request) -> Response:
        """The caller's own, the newest first, without their text."""
        now_s, tenant = time.perf_counter(), self._tenants.identify(credentials_of(request)).tenant
        rows = [
            _row(record, now_s) for record, _ in zip(self._records.of_tenant(tenant), range(LISTED_MAX), strict=False)
        ]
        return fresh_json({"object": "list", "data": rows})

    async def get(self, request: Request) -> Response:
        record, tenant = self._found(request)
        return fresh_json(_report(record, await in_turns(record.gather()), text_shown=tenant is not None))

    async def explanation(self, request: Request) -> Response:
        """Why it took as long as it did."""
        return fresh_json(explanation_of(self._explainer.explain(*self._found(request))))

    async def cancel(self, request: Request) -> Response:
        """End it, in whatever state it is. One that has ended stays as it is."""
        record, tenant = self._found(request)
        if record.work is not None:
            record.work.stop(CANCELLED)
        return fresh_json(_report(record, await in_turns(record.gather()), text_shown=tenant is not None))

    async def stream(self, request: Request) -> Response:
        """Its events after those that the caller has. They are text: none for an operator."""
        record, tenant = self._found(request)
        if tenant is None:
            message = "An admin key reads no text of a tenant. GET /admin/requests/ID tells how the request stands."
            raise ApiError(403, "text_is_the_tenants", message)
        place = _place(request.headers, request.query_params, record)
        request_class = RequestClass.BACKGROUND if record.downgraded else record.origin.request_class
        self._metrics.reattached(request_class)
        delay_s = class_settings(self._settings, request_class).pacing_ms / 1000
        reader = Reader(record, self._metrics, delay_s=delay_s, place=place)
        return EventStream(reader, patience(self._settings.streams, request_class), self._metrics)

    async def erase(self, request: Request) -> Response:
        record, _ = self._found(request)
        if not record.is_ended:
            raise not_possible("erase", record.response_id, "it has not ended; cancel it first")
        self._records.drop(record)
        return fresh_json({"id": record.response_id, "tokens": len(record.texts), "bytes": record.n_bytes})

    def _found(self, request: Request) -> tuple[Record, str | None]:
        """What the caller named, and its tenant; None for an operator, who finds everybody's and reads nobody's text."""
        wanted = request.path_params["request_id"]
        credentials = credentials_of(request)
        tenant = None if self._tenants.is_admin(credentials) else self._tenants.identify(credentials).tenant
        record = self._records.find(wanted, tenant)
        if record is None:
            raise response_not_found(wanted)
        return record, tenant


def _place(headers: Mapping[str, str], query: Mapping[str, str], record: Record) -> Place:
    # A client that reconnects by itself repeats the query: the header is newer.
    if last := headers.get("last-event-id"):
        return read_place(last, "Last-Event-ID", record)
    return read_place(query.get("from", "0"), "from", record)


def _row(record: Record, now_s: float) -> dict[str, Any]:
    origin = record.origin
    return {
        "id": record.response_id,
        "object": "request",
        "request_id": origin.request_id,
        "created": record.shape.heading.created,
        "class": (RequestClass.BACKGROUND if record.downgraded else origin.request_class).value,
        "background": record.detached,
        "state": record.state,
        "outcome": record.outcome,
        "error": _detail(record.failure),
        "age_ms": int((now_s - origin.arrived_s) * 1000),
        "usage": record.usage().as_json(),
    }


def _report(record: Record, answers: Sequence[Answer], *, text_shown: bool) -> dict[str, Any]:
    """Everything that there is of a request, but its prompt, which is not kept."""
    choices = [
        {
            "index": choice.index,
            "state": choice.state if choice.outcome is None and not record.is_ended else ENDED,
            "tokens": choice.n_output,
            "text": answer.text if text_shown else None,
            "finish_reason": choice.finish_reason,
            "outcome": choice.outcome,
        }
        for choice, answer in zip(record.choices, answers, strict=True)
    ]
    return _row(record, time.perf_counter()) | {"timeline": timeline_of(record), "choices": choices}


def _detail(error: ApiError | None) -> dict[str, Any] | None:
    return None if error is None else msgspec.json.decode(error.body())["error"]


def add_requests(app: FastAPI, requests: Requests) -> None:
    own = {"parameters": [schemas.path_parameter("request_id")]}
    app.add_api_route(
        "/v1/requests",
        requests.list,
        summary="List the caller's requests, the newest first, without their text",
        responses=schemas.answer(RequestList) | schemas.errors(401),
    )
    app.add_api_route(
        "/v1/requests/{request_id}",
        requests.get,
        summary="How a request stands, or ended, with its text so far",
        responses=schemas.answer(RequestReport) | schemas.errors(401, 404),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}",
        requests.erase,
        methods=["DELETE"],
        summary="Erase a request that has ended",
        responses=schemas.answer(EraseResult) | schemas.errors(401, 404, 409),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}/cancel",
        requests.cancel,
        methods=["POST"],
        summary="End a request; what there is of its result is kept",
        responses=schemas.answer(RequestReport) | schemas.errors(401, 404),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}/explanation",
        requests.explanation,
        summary="Why a request took as long as it did, without its text",
        responses=schemas.answer(Explanation) | schemas.errors(401, 404),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}/stream",
        requests.stream,
        summary="The events of a request, running or ended, from a place on",
        responses=schemas.events() | schemas.errors(400, 401, 403, 404),
        openapi_extra={"parameters": [schemas.path_parameter("request_id"), *PLACES]},
    )
