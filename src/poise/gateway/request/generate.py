"""The canonical request for a generation: what is asked for, whatever the dialect that it came in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from poise.gateway.request.structure import Structure
from poise.gateway.request.tools import NO_TOOLS, ToolUse
from poise.scheduler.request import RequestClass
from poise.wire.text import AS_USUAL, Message, Rendering
from poise.wire.to_engine import SamplingParams


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """How much a model is to reason. `variables`: for its chat template, by the fields that ask for them; it may know some."""

    variables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    budget: int | None = None
    """Tokens after which the end is forced; -1: no limit."""
    budget_param: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that the next one is asked for. `template` is a name, or empty."""

    messages: list[Message]
    context_policy: str = "reject"
    template: str = ""
    rendering: Rendering = AS_USUAL
    thinking: ThinkingWish = ThinkingWish()
    prediction: str = ""
    """What the answer will probably be, or be like: it comes sooner where that is right."""


Prompt = Conversation | list[str] | list[list[int]]
"""A conversation; or texts, or token ids that are used as they are, each of which is to be continued."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How the answer is to be written: what only a dialect's writer needs to know."""

    include_usage: bool = False
    continuous_usage: bool = False
    segments: bool = False
    service_tier: str = "default"
    legacy_calls: bool = False
    """The caller knows of one call an answer, which has no id: OpenAI's `function_call`."""


PLAIN = AnswerOptions()


@dataclass(frozen=True, slots=True)
class Generate:
    """`model` empty: none was named. `max_tokens` None: the class's default; 0: the prompt is only computed. `seed` None: a new
    one for each request.

    `sampling.seed` is still to be set: each choice gets its own."""

    model: str
    prompt: Prompt
    n: int
    """Choices for each prompt."""
    stream: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    sampling: SamplingParams
    request_class: RequestClass
    queue_timeout_ms: int
    """How long it may wait for a slot; 0: for ever."""
    background: bool
    """It goes on when its client leaves."""
    answer: AnswerOptions
    ignored: tuple[str, ...] = ()
    """Fields that were taken though they have no effect."""
    tools: ToolUse = NO_TOOLS
    """Those of a conversation; its `rendering` has what the chat template is shown of them."""
    structure: Structure | None = None
    """What the answer must be."""
    echo: bool = False
    """The answer begins with the prompt, and its log probabilities with those of the prompt."""
    fallback: bool = True
    """Where the first choice of who answers does not, another one may."""
    suffix: str = ""
    """What is to come after the answer: text between the prompt and this is to be filled in."""

    def echoed(self, i_prompt: int) -> str | None:
        """The text that the answers to a prompt begin with; empty: that of the prompt's tokens. None: nothing of it."""
        said = self.prompt[i_prompt] if self.echo and isinstance(self.prompt, list) else ""
        return (said if isinstance(said, str) else "") if self.echo else None
