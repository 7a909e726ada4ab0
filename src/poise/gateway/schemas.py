"""What the OpenAPI document says about answers. Requests are described by the fields that read them.

These models describe; nothing is validated or serialised with them while serving.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from poise.gateway.fields import Schema
from poise.gateway.segments import MARKS_SCHEMA


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


Responses = dict[int | str, dict[str, Any]]


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


def generation(body: type[BaseModel]) -> Responses:
    """The answers of a generation endpoint."""
    done: Responses = {
        200: {"model": body, "description": "The answer, or its events.", "content": _EVENTS, "headers": _NOTES}
    }
    return done | errors(400, 401, 403, 404, 408, 413, 429, 500, 503)


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
