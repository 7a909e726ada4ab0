"""The answers of both generation endpoints, as types: `writer` writes them in pieces, the OpenAPI document describes them."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from poise.gateway.api.fields import Schema
from poise.gateway.api.operation import Described
from poise.gateway.records.values import Notes, TokenUsage, one_of
from poise.gateway.request import headers
from poise.gateway.text.segments import MARKS_SCHEMA

FINISH_REASONS = ("stop", "length", "tool_calls", "function_call", "content_filter")
FinishReason = Annotated[str, one_of(*FINISH_REASONS)]


def finish_reason(ended_by: str) -> str:
    """How a choice ended, in OpenAI's words: strict clients throw an answer away that ended by anything else. One that was cut
    short has the reason of those that are not whole; `poise.outcome` says what it was."""
    return ended_by if ended_by in FINISH_REASONS else "length"


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(TokenLogprob, frozen=True, gc=False):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprobs]
    refusal: None = None


class FunctionCalled(msgspec.Struct, frozen=True):
    name: str
    arguments: str
    """JSON text, as the model wrote it."""


class CallMade(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCalled


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """null where the answer is nothing but calls."""
    reasoning_content: str | UnsetType = UNSET
    """What the model thought before it spoke."""
    tool_calls: list[CallMade] | UnsetType = UNSET
    function_call: FunctionCalled | UnsetType = UNSET
    """The call of who sent `functions`."""
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ResponseHeading(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    service_tier: Annotated[str, one_of("default", "priority", "flex")]
    system_fingerprint: str
    usage: TokenUsage


class ChatCompletion(ResponseHeading, frozen=True, kw_only=True):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    poise: Notes | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(ResponseHeading, frozen=True, kw_only=True):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    poise: Notes | UnsetType = UNSET


_CHOICE: Schema = {"type": "object", "properties": {"segments": MARKS_SCHEMA}}
_CHUNK: Schema = {"type": "object", "properties": {"choices": {"type": "array", "items": _CHOICE}}}
EVENTS: dict[str, Schema] = {
    "text/event-stream": {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "data": {
                "type": "string",
                "anyOf": [{"const": "[DONE]"}, {"contentMediaType": "application/json", "contentSchema": _CHUNK}],
            },
        },
        "required": ["data"],
        "description": "Chunks as JSON, the last one is `[DONE]`.",
    }
}
_HEADERS = {
    name: {"description": about, "schema": {"type": "string"}}
    for name, about in {
        headers.CONTEXT: "What was left out of the conversation under its context policy, with the numbers.",
        headers.IGNORED: "Fields of the request that have no effect, as `metadata, messages[].id`.",
        headers.RESPONSE_ID: "The response's id, also told by a stream at once.",
        headers.QUEUE_POSITION: "Place in the queue on arrival, from 1, of a request that had to wait.",
        headers.QUEUE_ETA: "How long it was expected to wait.",
        headers.WARNING: "What the caller should know about the request, which was answered all the same.",
    }.items()
}


def generated(body: type[ChatCompletion] | type[Completion]) -> dict[int, Described]:
    """The answers of a generation endpoint: whole, or as a stream."""
    return {200: Described(body, "The answer, or its events.", EVENTS, _HEADERS)}
