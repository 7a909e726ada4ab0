"""What is done with a conversation that does not fit: the limits of a class, turns, and which of them must go.

A turn is a user message with everything up to the next user message, so that calls and their results stay together. What comes
before the first user message is a turn too. System and developer messages belong to no turn and always stay, as does the
last turn: without it there would be nothing to answer. Turns go from the oldest on, and what stays keeps its order:

    system  [user assistant]  [user assistant tool assistant]  [user]
            `--- goes first   `--- goes next                   `--- stays

Nothing here knows text or tokens: how long a conversation is, only rendering and tokenising all of it can tell."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from poise.config import ClassSettings
from poise.gateway.request.refusals import ApiError, context_length_exceeded
from poise.wire.text import SYSTEM_ROLES, Message

RESERVE_TOKENS, RESERVE_SHARE = 512, 4
"""Turns are dropped for an answer of a page, or of this part of the context if that is less."""


class ContextPolicy(StrEnum):
    """What a caller wants done with a conversation that does not fit."""

    REJECT = "reject"
    TRIM = "trim"
    SUMMARIZE = "summarize"


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """How much a request of a class may have: `prompt` tokens of prompt, `output` of output, `context` of both together.

    `room` is `context` as it counts: one more where a slot's cells are the limit, because the last token of an answer is never
    fed back and takes none. `short_room` is that of a slot of the short pool, in which prompts of up to `heavy` tokens run."""

    request_class: str
    prompt: int
    context: int
    room: int
    output: int
    heavy: int
    short_room: int

    @classmethod
    def of_class(cls, name: str, settings: ClassSettings, slot_cells: int, short_cells: int) -> "ContextLimits":
        """What the settings allow, or the largest slot holds, whichever is less."""
        context, room = slot_cells, slot_cells + 1
        if 0 < settings.max_context_tokens <= slot_cells:
            context = room = settings.max_context_tokens
        prompt = min(settings.max_prompt_tokens or slot_cells, room - 1)
        heavy = min(settings.heavy_tokens, short_cells - 1)
        return cls(name, prompt, context, room, settings.max_output_tokens, heavy, min(room, short_cells + 1))

    def left(self, n_prompt: int) -> int:
        """Output tokens for which there is room after a prompt. Not positive: it does not fit at all."""
        return self.room - n_prompt if n_prompt <= self.prompt else 0

    def slot_left(self, n_prompt: int) -> int:
        """The same for the slot in which a prompt of that length runs."""
        left = self.left(n_prompt)
        return min(left, max(1, self.short_room - n_prompt)) if n_prompt <= self.heavy else left

    def room_for(self, n_output: int) -> int:
        """The longest prompt that leaves room for so much output."""
        return min(self.prompt, self.room - n_output)

    def exceeded(self, n_prompt: int, param: str, *, what: str = "The prompt", hint: str) -> ApiError:
        """The refusal of a prompt that does not fit, with the numbers. `what` and `hint` put it into words.

        Clients that shorten a conversation by themselves look for Anthropic's words, which come first, or for OpenAI's."""
        message = (
            f"{what} is too long: {n_prompt} tokens > {self.prompt} maximum. This model's maximum context length is "
            f"{self.context} tokens in class '{self.request_class}', prompt and output together."
        )
        return context_length_exceeded(message, hint, param)

    def cannot_fit(self, n_bytes: int, token_bytes: int, param: str, *, hint: str) -> ApiError | None:
        """The refusal of so much text that no tokeniser is needed to see that it is too long. `token_bytes`: see TextModel."""
        most = self.prompt * token_bytes
        if n_bytes <= most:
            return None
        message = (
            f"The prompt is too long: at least {-(-n_bytes // token_bytes)} tokens > {self.prompt} maximum in class "
            f"'{self.request_class}'. It has {n_bytes} bytes of text, and {most} is the most that so many tokens can stand for."
        )
        return context_length_exceeded(message, hint, param)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Most output tokens of a request, a ceiling: a number that it named, or the default of its class.

    Many name far more than they want: agents ask for 32,000 tokens, as a matter of course. A number that the context has room
    for is kept. What is more, and the default, is cut to what is left of the slot in which such a prompt runs."""

    tokens: int
    is_named: bool

    def wanted(self, limits: ContextLimits) -> list[int]:
        """For how many output tokens turns are dropped, each after the first where the one before cannot be had: who lets a chat
        be trimmed does not want answers of one token."""
        reserve = max(1, min(self.tokens, RESERVE_TOKENS, limits.context // RESERVE_SHARE))
        is_meant = self.is_named and 0 < self.tokens <= min(limits.output, limits.room - 1)
        return [self.tokens, reserve, 1] if is_meant else [reserve, 1]

    def granted(self, limits: ContextLimits, n_prompt: int) -> int | None:
        """Output tokens that it comes to beside a prompt; None: that does not fit."""
        left = limits.left(n_prompt)
        if left < 1:
            return None
        is_kept = self.is_named and self.tokens <= min(left, limits.output)
        return self.tokens if is_kept else min(self.tokens, limits.output, limits.slot_left(n_prompt))


class Turns:
    """A conversation taken apart into turns."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.numbers: list[int] = []
        """For each message, the number of its turn, from 0; -1 for what always stays."""
        self.n = 0
        for message in messages:
            is_any = message.role not in SYSTEM_ROLES
            self.n += is_any and (message.role == "user" or not self.n)
            self.numbers.append(self.n - 1 if is_any else -1)

    @property
    def droppable(self) -> int:
        """Turns that can go: all but the last one."""
        return max(0, self.n - 1)

    def dropped(self, n_dropped: int) -> list[Message]:
        """The messages of the first turns."""
        pairs = zip(self.messages, self.numbers, strict=True)
        return [message for message, turn in pairs if 0 <= turn < n_dropped]
