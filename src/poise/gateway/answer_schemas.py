"""What the OpenAPI document says about the answers of the two generation endpoints."""

from __future__ import annotations

from typing import Literal

from poise.gateway.schemas import Closed


class PromptTokensDetails(Closed):
    cached_tokens: int


class TokenUsage(Closed):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


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
    finish_reason: Literal["stop", "length", "cancelled", "server_stopping"]


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
    finish_reason: Literal["stop", "length", "cancelled", "server_stopping"]


class Completion(ResponseHeading):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
