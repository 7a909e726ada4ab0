"""What the OpenAPI document says about answers. Requests are described by the fields that read them.

These models describe; nothing is validated or serialised with them while serving.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from poise.gateway.answer_schemas import Closed, ErrorBody, ErrorDetail, TokenUsage
from poise.gateway.fields import Schema
from poise.gateway.segments import MARKS_SCHEMA

Responses = dict[int | str, dict[str, Any]]


class ModelCard(Closed):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None


class ModelList(Closed):
    object: Literal["list"]
    data: list[ModelCard]


class TemplateCard(Closed):
    name: str
    object: Literal["template"]
    tokens: int | None
    kept: bool


class TemplateList(Closed):
    object: Literal["list"]
    data: list[TemplateCard]


LevelName = Literal["normal", "busy", "constrained", "degraded", "draining"]


class HealthBody(Closed):
    status: Literal["ok", "loading", "restarting", "failed", "stopped", "draining"]
    live: bool
    ready: bool
    progress: float
    stage: str
    detail: str
    restarts: int
    model: str
    level: LevelName
    reasons: list[str]


class LiveBody(Closed):
    status: Literal["ok"]
    live: bool


class RecentTtft(Closed):
    p50: float | None
    p95: float | None
    count: int


class ClassFigures(Closed):
    queued: int
    running: int
    paused: int
    swapped: int
    wait_estimate_ms: int | None
    wait_error: float | None
    ttft_ms: RecentTtft


class SlotFigures(Closed):
    slot: int
    state: Literal["running", "paused", "warm"]
    class_: str | None = Field(alias="class")
    cells: int


class PoolFigures(Closed):
    name: str
    slots: int
    slots_held: int
    slots_warm: int
    slots_peak: int
    cells: int
    cells_used: int
    cells_warm: int
    cells_peak: int
    cells_by_class: dict[str, int]
    cells_by_tenant: dict[str, int] | None
    holes: int
    occupied: list[SlotFigures]
    slot_cells: int
    flash_attention: bool
    kv_bytes: int


class StoreFigures(Closed):
    budget_bytes: int
    peak_bytes: int
    bytes_by_purpose: dict[str, int]
    entries_by_purpose: dict[str, int]


class TotalFigures(Closed):
    preemptions: dict[str, int]
    resumes: int
    downgrades: int
    expired: int
    prefix_hits: int
    cached_tokens: int
    recomputed_tokens: int
    evicted_entries: int
    stored_bytes: int
    loaded_bytes: int
    unstored: int


class ControlledChoice(Closed):
    index: int
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    detail: str


class ControlResult(Closed):
    id: str
    action: Literal["pause", "resume", "downgrade", "cancel"]
    choices: list[ControlledChoice]


class ForgetResult(Closed):
    tenant: str
    entries: int
    cells: int


class TenantEraseResult(Closed):
    tenant: str
    live_ended: int
    live_kept: int
    erased: dict[str, int]


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


class RequestMoment(BaseModel):
    """Something that happened to a request, with what else is known of it."""

    what: str
    ms: int
    tokens: int


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


class Rates(Closed):
    prompt: float
    output: float


class FindingRow(Closed):
    finding: str
    text: str
    age_s: float
    runbook: str
    detail: dict[str, Any] | None


class TaskRow(Closed):
    name: str
    state: Literal["running", "failing", "ended", "given_up"]
    since_s: float
    failures: int
    last_error: str | None


class TextWorkerRow(Closed):
    pid: int | None
    """For operators."""
    state: Literal["starting", "ready", "busy", "waiting"]
    restarts: int


class TextFigures(Closed):
    workers: list[TextWorkerRow]
    queued: int
    queued_bytes: int


class StatusBody(Closed):
    phase: Literal["loading", "ready", "restarting", "failed", "stopped"]
    model: str
    uptime_s: float
    progress: float
    stage: str
    detail: str
    restarts: int
    level: LevelName
    reasons: list[str]
    open_requests: int
    live_choices: int
    classes: dict[str, ClassFigures]
    pools: list[PoolFigures]
    store: StoreFigures | None
    totals: TotalFigures | None
    tokens_per_s: Rates
    engine_rss_bytes: int | None
    engine_unaccounted_bytes: int | None
    bottleneck: str | None
    findings: list[FindingRow]
    text: TextFigures
    tasks: list[TaskRow]


_ERRORS = {
    400: "The request is malformed, unsupported, or too long for the context.",
    401: "An API key is missing or unknown.",
    403: "This caller may not.",
    404: "There is no such model, template or request.",
    408: "The body did not arrive in time.",
    409: "The request's state does not allow it.",
    413: "The body is too large.",
    429: "A queue is full, tokens per minute are used up, or too many requests came with keys that are not known.",
    500: "Something failed in the server; its log has the details.",
    503: "The engine cannot take requests now, too many requests are open, or the request waited too long.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
_NOTES = {
    name: {"description": about, "schema": {"type": "string"}}
    for name, about in {
        "X-Poise-Context": "What was left out of the conversation under its context policy, with the numbers.",
        "X-Poise-Response-Id": "The response's id, also told by a stream at once.",
        "X-Poise-Queue-Position": "Place in the queue on arrival, from 1, of a request that had to wait.",
        "X-Poise-Queue-Eta-Ms": "How long it was expected to wait.",
        "X-Poise-Warning": "What the caller should know about the request, which was answered all the same.",
    }.items()
}


def path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def answer(body: type[BaseModel], status: int = 200, description: str = "The answer.") -> Responses:
    return {status: {"model": body, "description": description}}


def errors(*statuses: int) -> Responses:
    """Those of an endpoint's answers that are errors. Who goes on with a key that is not known is told 429 instead of 401."""
    statuses = (*statuses, 429) if 401 in statuses and 429 not in statuses else statuses
    return {
        status: {"model": ErrorBody, "description": _ERRORS[status]}
        | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
        for status in statuses
    }


_CHOICE: Schema = {"type": "object", "properties": {"segments": MARKS_SCHEMA}}
_CHUNK: Schema = {"type": "object", "properties": {"choices": {"type": "array", "items": _CHOICE}}}
_EVENT: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "data": {
            "type": "string",
            "anyOf": [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": _CHUNK}],
        },
    },
    "required": ["data"],
}
_EVENTS: Schema = {
    "text/event-stream": {"schema": _EVENT | {"description": "Chunks as JSON, the last one is `[DONE]`."}}
}
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


def generation(body: type[BaseModel]) -> Responses:
    """The answers of a generation endpoint."""
    done: Responses = {
        200: {"model": body, "description": "The answer, or its events.", "content": _EVENTS, "headers": _NOTES}
    }
    return done | errors(400, 401, 403, 404, 408, 413, 429, 500, 503)


LIVE_PARAMETER: Schema = {
    "name": "live",
    "in": "query",
    "required": False,
    "description": "1: end the tenant's live requests as well.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}


def events() -> Responses:
    return {200: {"description": "The events.", "content": _EVENTS}}


def lines() -> Responses:
    return {200: {"description": "JSON lines.", "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


def plain(description: str) -> Responses:
    return {200: {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}}


def request_body(schema: Schema, models: list[str]) -> dict[str, Any]:
    """A generation endpoint's body, for FastAPI's openapi_extra."""
    model = schema["properties"]["model"] | {"enum": models}
    schema = schema | {"properties": schema["properties"] | {"model": model}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
