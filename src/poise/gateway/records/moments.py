"""What a record consists of: how its choices stand, what happened when, how each ended; and what that takes in memory."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import UNSET

from poise.gateway.records.changes import RequestState
from poise.gateway.records.values import Answer, Bill, Logprob, Notes, ToolCall, one_of
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.answers import EntryKind
from poise.scheduler.request import Queued
from poise.wire.messages import Drafted, Prefill

ChoiceState = Annotated[str, one_of(*RequestState)]
WOKEN = "woken"
"""The moment of a request for which the model's pages, given back while nothing was asked for, have to be read again."""
PREFILL_LEFT_MS = 500
"""How far a prompt is, is told while the rest takes as long as this or longer."""
PREFILL = "prefill"
"""A moment for chunks of a prompt that were computed."""
_RECORD_BYTES, _CHOICE_BYTES, _END_BYTES, _ENTRY_BYTES, _FAILURE_BYTES = 1958, 180, 130, 24, 450
_MOMENT_BYTES, _DETAIL_BYTES = 88, 24
_LOGPROB_BYTES, _TOP_BYTES, _ROUNDING_BYTES, _NOTES_BYTES, _BILL_BYTES = 280, 88, 8, 600, 300
"""About what the objects take besides their texts, as measured (tests compare them with what the process takes)."""


@dataclass(slots=True)
class ChoiceRecord:
    """How one choice stands. `outcome` is how its engine request ended, once it has; `finish_reason` what a client is told."""

    index: int
    counts_as: str
    """The class whose figures it goes into: a downgraded one would spoil those of the class that it came in."""
    state: RequestState = RequestState.QUEUED
    started: bool = False
    place: Queued | None = None
    """The last that was told of its place in the queue, while it is there."""
    n_output: int = 0
    n_cached: int = 0
    """Tokens of its prompt that were not computed for it."""
    n_recomputed: int = 0
    """Tokens that were computed again, as the engine said at its end."""
    n_drafted: int = 0
    """Guesses of its tokens that were computed, and of these those that came true."""
    n_accepted: int = 0
    n_chunks: int = 0
    """Chunks of its prompt that were computed."""
    n_prefilled: int = 0
    """Tokens of its prompt that are in its slot, and when it had the first of those that were computed for it."""
    prefill_s: float | None = None
    chunks: "Moment | None" = None
    """The moment that its next chunk may be added to."""
    first_s: float | None = None
    """When its first output token arrived, and its last one."""
    last_s: float | None = None
    finish_reason: str | None = None
    outcome: str | None = None

    def draft(self, drafted: Drafted) -> None:
        """Guesses of its next tokens were computed."""
        self.n_drafted += drafted.n_drafted
        self.n_accepted += drafted.n_accepted

    def foreseen(self, prefill: Prefill, n_prompt: int, now_s: float) -> dict[str, int] | None:
        """With this chunk: tokens of the prompt that are `computed`, `of` how many, and in how many ms (`eta_ms`) the rest will
        be at the pace so far. None: that is soon."""
        if self.prefill_s is None:
            self.prefill_s, self.n_prefilled = now_s - prefill.pass_us / 1e6, self.n_cached
        self.n_prefilled += prefill.n_tokens
        computed, left = self.n_prefilled - self.n_cached, n_prompt - self.n_prefilled
        pace_ms = (now_s - self.prefill_s) * 1000 / max(1, computed)
        if left <= 0 or pace_ms * left < PREFILL_LEFT_MS:
            return None
        return {"computed": self.n_prefilled, "of": n_prompt, "eta_ms": int(pace_ms * left)}


def drafts_of(choices: Iterable[ChoiceRecord]) -> tuple[int, int]:
    """Guesses that came true, and that did not, of all choices."""
    counts = [(choice.n_accepted, choice.n_drafted - choice.n_accepted) for choice in choices]
    return sum(accepted for accepted, _ in counts), sum(rejected for _, rejected in counts)


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened, after `n_entries` entries of output."""

    what: str
    at_s: float
    n_entries: int
    choice: int | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class End:
    """The end of a choice, after `n_entries` entries of all choices, with the text that was held back until then."""

    n_entries: int
    choice: int
    reason: str
    text: str
    logprobs: Sequence[Logprob]


class Gathered:
    """What the pieces of one choice come to, put together in their order."""

    def __init__(self) -> None:
        self._texts: tuple[list[str], list[str]] = ([], [])
        """What was said, and the reasoning: by EntryKind."""
        self._calls: list[tuple[str, list[str]]] = []

    def add(self, text: str, kind: int = EntryKind.TEXT) -> None:
        if kind <= EntryKind.REASONING:
            self._texts[kind].append(text)
        elif kind == EntryKind.CALL_NAME:
            self._calls.append((text, []))
        else:
            self._calls[-1][1].append(text)

    def answer(self, index: int, reason: str, logprobs: list[Logprob] | None) -> Answer:
        text, reasoning = map("".join, self._texts)
        calls = [ToolCall(name, "".join(parts)) for name, parts in self._calls]
        return Answer(index, text, reason, logprobs, reasoning, calls)


def bytes_of(n_choices: int, n_ends: int, n_entries: int) -> int:
    """A record without its contents."""
    return _RECORD_BYTES + _CHOICE_BYTES * n_choices + _END_BYTES * n_ends + _ENTRY_BYTES * n_entries


def weight_of(texts: Sequence[str], logprobs: Iterable[Sequence[Logprob]], moments: Iterable[Moment] = ()) -> int:
    """What contents take."""
    # Python has each text of no or one character (of Latin-1) once.
    n_bytes = sum(sys.getsizeof(text) + _ROUNDING_BYTES for text in texts if len(text) > 1)
    n_bytes += sum(_LOGPROB_BYTES + _TOP_BYTES * len(token.top) for tokens in logprobs for token in tokens)
    return n_bytes + sum(_MOMENT_BYTES + sys.getsizeof(m.detail) + _DETAIL_BYTES * len(m.detail) for m in moments)


def end_bytes(failure: ApiError | None, notes: Notes | None, bill: Bill | None = None) -> int:
    """What comes to a record with its end."""
    n_bytes = _FAILURE_BYTES + sys.getsizeof(failure.message) if failure is not None else 0
    n_bytes += _BILL_BYTES if bill is not None else 0
    if notes is None:
        return n_bytes
    summary = UNSET if notes.context is UNSET else notes.context.summary
    return n_bytes + _NOTES_BYTES + (0 if summary is UNSET else sys.getsizeof(summary))
