"""What the OpenAPI document says about answers. Requests are described by the fields that read them.

These models describe; nothing is validated or serialised with them while serving.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from poise.gateway.fields import Schema

Responses = dict[int | str, dict[str, Any]]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Closed):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(Closed):
    """Every answer that is not a result."""

    error: ErrorDetail


class TokenUsage(Closed):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(Closed):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Closed):
    content: list[TokenLogprobs]
    refusal: None


class ChatMessage(Closed):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Closed):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ContextNote(Closed):
    """What was left out of a conversation, or summarized: only the fields of the policy that did it are there."""

    policy: Literal["trim", "summarize"]
    prompt_tokens: int
    dropped_turns: int = 0
    dropped_messages: int = 0
    dropped_tokens: int = 0
    summarized_turns: int = 0
    summarized_messages: int = 0
    summarized_tokens: int = 0
    summary_tokens: int = 0
    summary: str = ""
    summary_usage: TokenUsage | None = None


class Notes(Closed):
    """How the answer was made, where it was not made of all that was sent."""

    context: ContextNote


class ResponseHeading(Closed):
    id: str
    created: int
    model: str
    service_tier: Literal["default", "priority", "flex"]
    system_fingerprint: str
    usage: TokenUsage


class ChatCompletion(ResponseHeading):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    poise: Notes | None = None


class CompletionLogprobs(Closed):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Closed):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(ResponseHeading):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


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


class TemplateList(Closed):
    object: Literal["list"]
    data: list[TemplateCard]


class HealthBody(Closed):
    status: Literal["ok", "loading", "restarting", "failed", "stopped"]
    live: bool
    ready: bool
    progress: float
    stage: str
    detail: str
    restarts: int
    model: str


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
    wait_estimate_ms: int | None
    ttft_ms: RecentTtft


class PoolFigures(Closed):
    name: str
    slots: int
    slots_held: int
    cells: int
    cells_used: int
    slot_cells: int
    flash_attention: bool
    kv_bytes: int


class Rates(Closed):
    prompt: float
    output: float


class StatusBody(Closed):
    phase: Literal["loading", "ready", "restarting", "failed", "stopped"]
    model: str
    uptime_s: float
    progress: float
    stage: str
    detail: str
    restarts: int
    open_requests: int
    classes: dict[str, ClassFigures]
    pools: list[PoolFigures]
    tokens_per_s: Rates
    engine_rss_bytes: int | None


_ERRORS = {
    400: "The request is malformed, unsupported, or too long for the context.",
    401: "An API key is missing or unknown.",
    403: "Only callers on this machine may ask.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "The queue of the request's class is full.",
    500: "Something failed in the server; its log has the details.",
    503: "The engine cannot take requests now, or too many requests are open.",
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}}
_NOTES = {
    name: {"description": about, "schema": {"type": "string"}}
    for name, about in {
        "X-Poise-Context": "What was left out of the conversation under its context policy, with the numbers.",
        "X-Poise-Warning": "What the caller should know about the request, which was answered all the same.",
    }.items()
}


def answer(body: type[BaseModel], status: int = 200, description: str = "The answer.") -> Responses:
    return {status: {"model": body, "description": description}}


def errors(*statuses: int) -> Responses:
    """Those of an endpoint's answers that are errors."""
    return {
        status: {"model": ErrorBody, "description": _ERRORS[status]}
        | ({"headers": _RETRY_AFTER} if status in (429, 503) else {})
        for status in statuses
    }


def generation(body: type[BaseModel]) -> Responses:
    """The answers of a generation endpoint."""
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    events = {"text/event-stream": {"schema": event | {"description": "Chunks as JSON, the last one is `[DONE]`."}}}
    done: Responses = {
        200: {"model": body, "description": "The answer, or its events.", "content": events, "headers": _NOTES}
    }
    return done | errors(400, 401, 404, 408, 413, 429, 500, 503)


def lines() -> Responses:
    return {200: {"description": "JSON lines.", "content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}


def request_body(schema: Schema, models: list[str]) -> dict[str, Any]:
    """A generation endpoint's body, for FastAPI's openapi_extra."""
    model = schema["properties"]["model"] | {"enum": models}
    schema = schema | {"properties": schema["properties"] | {"model": model}}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
