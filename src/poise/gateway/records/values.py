"""What a record holds, and what is told of it, whatever the dialect: tokens with their probabilities, answers, counts."""

from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType


def one_of(*values: str) -> msgspec.Meta:
    """Describes the values of a string whose type does not: `Annotated[str, one_of("begin", "end")]`."""
    return msgspec.Meta(extra_json_schema={"enum": [str(value) for value in values]})


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int
    accepted_prediction_tokens: int | UnsetType = UNSET
    """Guesses of tokens that came true, whether they were of a prediction or of what was said before; and those that did not."""
    rejected_prediction_tokens: int | UnsetType = UNSET


class TokenUsage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET
    """Where the model reasoned, or tokens were guessed."""


class ContextNote(msgspec.Struct, frozen=True, kw_only=True):
    """What was left out of a conversation, or summarized: only the fields of the policy that did it are there."""

    policy: Annotated[str, one_of("trim", "summarize")]
    dropped_turns: int | UnsetType = UNSET
    dropped_messages: int | UnsetType = UNSET
    dropped_tokens: int | UnsetType = UNSET
    summarized_turns: int | UnsetType = UNSET
    summarized_messages: int | UnsetType = UNSET
    summarized_tokens: int | UnsetType = UNSET
    summary_tokens: int | UnsetType = UNSET
    summary: str | UnsetType = UNSET
    summary_usage: TokenUsage | UnsetType = UNSET
    prompt_tokens: int


class Notes(msgspec.Struct, frozen=True):
    """How the answer was made, where it was not made of all that was sent; and how it ended, where it was cut short."""

    context: ContextNote | UnsetType = UNSET
    outcome: str | UnsetType = UNSET


@dataclass(slots=True)
class Usage:
    """Tokens of a request: each prompt counted once, the output of all choices summed up.

    `cached_tokens` were not computed, because an earlier request had; every choice begins with the prompt, so they too are
    summed up over the choices."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    """Of the output, those of reasoning."""
    accepted_tokens: int = 0
    rejected_tokens: int = 0
    """Guesses that came true, and others that were computed."""

    def as_sent(self) -> TokenUsage:
        """As an answer has it."""
        n_total = self.prompt_tokens + self.completion_tokens
        cached = PromptTokensDetails(self.cached_tokens)
        details = CompletionTokensDetails(self.reasoning_tokens) if self.reasoning_tokens else UNSET
        if self.accepted_tokens or self.rejected_tokens:
            details = CompletionTokensDetails(self.reasoning_tokens, self.accepted_tokens, self.rejected_tokens)
        return TokenUsage(self.prompt_tokens, self.completion_tokens, n_total, cached, details)


class Logprob(msgspec.Struct, frozen=True, gc=False):
    """A token with its log probability. `offset` is where its text begins in the answer, `end` where it is all told.

    NaN: nothing stands before it that could make it likely, as of the first token of a prompt.

    It is no business of the collector of cycles, which would hold the event loop up while it looks at a million of them."""

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int
    end: int


@dataclass(slots=True)
class ToolCall:
    """A call of a function in an answer. `arguments`: JSON text, as the model wrote it."""

    name: str
    arguments: str = ""


@dataclass(slots=True)
class Answer:
    """What one choice has come to. `text` is what it says, without its reasoning and its calls."""

    index: int
    text: str
    finish_reason: str
    logprobs: list[Logprob] | None
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def whole(self) -> str:
        """All that the model has answered, for somebody who reads it."""
        return "\n".join([self.text, *(f"{call.name}({call.arguments})" for call in self.calls)])


@dataclass(frozen=True, slots=True)
class Heading:
    """What an answer says of itself, whatever the dialect. `fingerprint`: of what computed it."""

    response_id: str
    created: int
    model: str
    fingerprint: str


class Bill(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer of another server took and cost, in nano-units of money. `reason`: why it was sent there."""

    backend: str
    label: str
    reason: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost_nano: int
    is_known: bool = True
    """Its server has told what it took; else all that was reserved is charged."""
    price_version: str = ""
