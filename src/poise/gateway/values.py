"""What a record holds, and what is told of it, whatever the dialect: tokens with their probabilities, answers, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(slots=True)
class Usage:
    """Tokens of a request: each prompt counted once, the output of all choices summed up.

    `cached_tokens` were not computed, because an earlier request had; every choice begins with the prompt, so they too are
    summed up over the choices.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class TokenEntry(msgspec.Struct, frozen=True, gc=False):
    """A token with its log probability. `offset` is where its text begins in the answer, `end` where it is all told.

    It is no business of the collector of cycles, which would hold the event loop up while it looks at a million of them.
    """

    piece: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]
    offset: int
    end: int


@dataclass(slots=True)
class Answer:
    """What one choice has come to."""

    index: int
    text: str
    finish_reason: str
    entries: list[TokenEntry] | None


@dataclass(frozen=True, slots=True)
class Heading:
    """What every body and event of a response repeats."""

    response_id: str
    created: int
    model: str
    service_tier: str
    fingerprint: str

    def as_json(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "service_tier": self.service_tier,
            "system_fingerprint": self.fingerprint,
        }
