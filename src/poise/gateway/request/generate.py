"""The canonical requests: what is asked for, whatever the dialect that it came in."""

from __future__ import annotations

from dataclasses import dataclass

from poise.scheduler.request import RequestClass
from poise.wire.text import Message
from poise.wire.to_engine import SamplingParams


@dataclass(frozen=True, slots=True)
class Options:
    """What both endpoints share. `max_tokens` None: the class's default. `seed` None: a new one for each request.

    `sampling.seed` is still to be set: each choice gets its own.
    """

    model: str
    n: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    segments: bool
    max_tokens: int | None
    max_tokens_param: str
    stop: tuple[str, ...]
    seed: int | None
    sampling: SamplingParams
    service_tier: str
    request_class: RequestClass
    queue_timeout_ms: int
    """How long it may wait for a slot; 0: for ever."""
    background: bool
    """It goes on when its client leaves."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`template` is a name, or empty."""

    options: Options
    messages: list[Message]
    context_policy: str = "reject"
    template: str = ""


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """`prompts` holds texts, or token ids that are used as they are."""

    options: Options
    prompts: list[str] | list[list[int]]
