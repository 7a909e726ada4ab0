"""The bodies and stream events of both endpoints, as OpenAI's clients expect them.

Each event has an `id`: how many output tokens the stream has told with it, and after a dot of how many choices it has told the
end, if any. A client that comes back with the last id it saw goes on after exactly that event.

Streams are written per batch of tokens and per client, so an event is put together from bytes that were encoded once for the
request; only the text goes through an encoder. That is some twenty times cheaper than building and validating an object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import msgspec

from poise.gateway.segments import Mark

encode = msgspec.json.Encoder().encode

DOWNGRADED_TIER = "flex"
ENTRIES_IN_A_PIECE = 128
_LOGPROB_MIN = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON does not have."""


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


@dataclass(slots=True)
class ResponseFormat(ABC):
    """One response's bodies and events. With `usage_field`, events have a `usage`, null unless one is given.

    `notes` is what the answer says about how it was made, in a field `poise`: of the body, or of a stream's first event.
    """

    heading: Heading
    usage_field: bool = False
    notes: dict[str, Any] | None = None
    _prefix: bytes = field(init=False)
    _untold: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._untold = b"" if self.notes is None else b',"poise":' + encode(self.notes)
        self._prefix = self._begin()

    def downgrade(self) -> None:
        """From here on the answer says that it is background work."""
        self.heading = replace(self.heading, service_tier=DOWNGRADED_TIER)
        self._prefix = self._begin()

    @property
    @abstractmethod
    def chunk_kind(self) -> str: ...

    @abstractmethod
    def text_event(
        self,
        at: bytes,
        index: int,
        text: str,
        entries: Sequence[TokenEntry] | None,
        *,
        first: bool,
        usage: Usage | None,
        marks: Sequence[Mark] = (),
    ) -> bytes:
        """A piece of a choice. `first`: it opens the choice. `at`: the event's id. `marks`: of segments, if they are wanted."""

    @abstractmethod
    def finish_event(
        self,
        at: bytes,
        index: int,
        reason: str,
        text: str,
        entries: Sequence[TokenEntry] | None,
        usage: Usage | None,
        marks: Sequence[Mark] = (),
    ) -> bytes:
        """The end of a choice, with the text that was held back until then."""

    def body(self, answers: Sequence[Answer], usage: Usage) -> Iterator[bytes]:
        """The whole response of a request that did not stream, in pieces that take a few milliseconds each."""
        yield encode(self.heading.as_json(self.body_kind))[:-1] + b',"choices":['
        for n, answer in enumerate(answers):
            yield b"," if n else b""
            yield from self.choice(answer)
        yield b'],"usage":' + encode(usage.as_json()) + self._untold + b"}"

    @property
    @abstractmethod
    def body_kind(self) -> str: ...

    @abstractmethod
    def choice(self, answer: Answer) -> Iterator[bytes]:
        """One choice of the whole response."""

    def usage_event(self, at: bytes, usage: Usage) -> bytes:
        return b'id: %b\n%b],"usage":%b}\n\n' % (at, self._prefix, encode(usage.as_json()))

    def _begin(self) -> bytes:
        return b"data: " + encode(self.heading.as_json(self.chunk_kind))[:-1] + b',"choices":['

    def _event(self, at: bytes, choice: bytes, usage: Usage | None) -> bytes:
        notes, self._untold = self._untold, b""
        if usage is not None:
            tail = b'],"usage":' + encode(usage.as_json()) + notes
        else:
            tail = (b'],"usage":null' if self.usage_field else b"]") + notes
        return b"id: %b\n%b%b%b}\n\n" % (at, self._prefix, choice, tail)


class ChatFormat(ResponseFormat):
    @property
    def chunk_kind(self) -> str:
        return "chat.completion.chunk"

    def text_event(
        self,
        at: bytes,
        index: int,
        text: str,
        entries: Sequence[TokenEntry] | None,
        *,
        first: bool,
        usage: Usage | None,
        marks: Sequence[Mark] = (),
    ) -> bytes:
        role = b'"role":"assistant",' if first else b""
        logprobs = b"null" if entries is None else encode(chat_logprobs(entries))
        choice = b'{"index":%d,"delta":{%b"content":%b},"logprobs":%b,"finish_reason":null%b}'
        return self._event(at, choice % (index, role, encode(text), logprobs, _segments(marks)), usage)

    def finish_event(
        self,
        at: bytes,
        index: int,
        reason: str,
        text: str,
        entries: Sequence[TokenEntry] | None,
        usage: Usage | None,
        marks: Sequence[Mark] = (),
    ) -> bytes:
        content = b'"content":' + encode(text) if text else b""
        logprobs = encode(chat_logprobs(entries)) if entries else b"null"
        choice = b'{"index":%d,"delta":{%b},"logprobs":%b,"finish_reason":%b%b}'
        return self._event(at, choice % (index, content, logprobs, encode(reason), _segments(marks)), usage)

    @property
    def body_kind(self) -> str:
        return "chat.completion"

    def choice(self, answer: Answer) -> Iterator[bytes]:
        message = encode({"role": "assistant", "content": answer.text, "refusal": None})
        yield b'{"index":%d,"message":%b,"logprobs":' % (answer.index, message)
        if answer.entries is None:
            yield b"null"
        else:
            yield b'{"content":['
            yield from _joined(answer.entries, lambda entries: chat_logprobs(entries)["content"])
            yield b'],"refusal":null}'
        yield b',"finish_reason":%b}' % encode(answer.finish_reason)


class CompletionFormat(ResponseFormat):
    @property
    def chunk_kind(self) -> str:
        return "text_completion"

    def text_event(
        self,
        at: bytes,
        index: int,
        text: str,
        entries: Sequence[TokenEntry] | None,
        *,
        first: bool,
        usage: Usage | None,
        marks: Sequence[Mark] = (),
    ) -> bytes:
        logprobs = b"null" if entries is None else encode(completion_logprobs(entries))
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":null%b}'
        return self._event(at, choice % (index, encode(text), logprobs, _segments(marks)), usage)

    def finish_event(
        self,
        at: bytes,
        index: int,
        reason: str,
        text: str,
        entries: Sequence[TokenEntry] | None,
        usage: Usage | None,
        marks: Sequence[Mark] = (),
    ) -> bytes:
        logprobs = encode(completion_logprobs(entries)) if entries else b"null"
        choice = b'{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b%b}'
        return self._event(at, choice % (index, encode(text), logprobs, encode(reason), _segments(marks)), usage)

    @property
    def body_kind(self) -> str:
        return "text_completion"

    def choice(self, answer: Answer) -> Iterator[bytes]:
        yield b'{"index":%d,"text":%b,"logprobs":' % (answer.index, encode(answer.text))
        if answer.entries is None:
            yield b"null"
        else:
            for n, (name, value_of) in enumerate(_COMPLETION_LOGPROBS.items()):
                yield b"%b%b:[" % (b"," if n else b"{", encode(name))
                yield from _joined(answer.entries, partial(_each, value_of))
                yield b"]"
            yield b"}"
        yield b',"finish_reason":%b}' % encode(answer.finish_reason)


@dataclass(slots=True)
class Shape:
    """What the answers to one request look like: enough to write them again for a reader who comes later.

    `notes`: see ResponseFormat; they can come after the rest.
    """

    kind: type[ResponseFormat]
    heading: Heading
    include_usage: bool = False
    continuous_usage: bool = False
    notes: dict[str, Any] | None = None
    segments: bool = False

    def format(self) -> ResponseFormat:
        return self.kind(self.heading, self.include_usage or self.continuous_usage, self.notes)


def _segments(marks: Sequence[Mark]) -> bytes:
    """The end of a choice. There is no such field where there is nothing to mark."""
    return b',"segments":' + encode(marks) if marks else b""


def event(at: bytes, data: bytes) -> bytes:
    """Anything else that a stream tells."""
    return b"id: %b\ndata: %b\n\n" % (at, data)


def queue_comment(position: int, eta_ms: int) -> bytes:
    """Tells a waiting stream its place. A line that begins with a colon is a comment, which clients skip.

    No empty line follows: behind an event with an id, OpenAI's client takes one for another event, without data.
    """
    return b": queued position=%d eta_ms=%d\n" % (position, eta_ms)


_CHANGES = {
    "pause": b"paused",
    "swap": b"swapped",
    "drop": b"dropped",
    "resume": b"resumed",
    "downgrade": b"downgraded",
    "stall": b"stalled",
    "lost": b"recovering",
    "recover": b"recovered",
}


def change_comment(what: str, why: str, index: int | None) -> bytes:
    """Tells a stream what became of its place in the engine. `index`: of the choice, where there are several."""
    choice = b"" if index is None else b" choice=%d" % index
    name = b"recomputed" if what == "recover" else b"why"
    reason = b" %b=%b" % (name, why.encode()) if why else b""
    return b": %b%b%b\n" % (_CHANGES.get(what, what.encode()), choice, reason)


def summary_comment(n_turns: int) -> bytes:
    """Tells a waiting stream what it waits for."""
    return b": summarizing turns=%d\n" % n_turns


def chat_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    content = [
        _token_json(entry.piece, entry.logprob)
        | {"top_logprobs": [_token_json(piece, logprob) for piece, logprob in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    return {name: [field(entry) for entry in entries] for name, field in _COMPLETION_LOGPROBS.items()}


_COMPLETION_LOGPROBS: dict[str, Callable[[TokenEntry], Any]] = {
    "tokens": lambda entry: token_text(entry.piece),
    "token_logprobs": lambda entry: max(entry.logprob, _LOGPROB_MIN),
    "top_logprobs": lambda entry: {
        token_text(piece): max(logprob, _LOGPROB_MIN) for piece, logprob in [*entry.top, (entry.piece, entry.logprob)]
    },
    "text_offset": lambda entry: entry.offset,
}


def _each(field: Callable[[TokenEntry], Any], entries: Sequence[TokenEntry]) -> list[Any]:
    return [field(entry) for entry in entries]


def _joined(
    entries: Sequence[TokenEntry], as_json: Callable[[Sequence[TokenEntry]], list[Any]], n: int = ENTRIES_IN_A_PIECE
) -> Iterator[bytes]:
    """The inside of a JSON array, `n` entries a piece."""
    for begin in range(0, len(entries), n):
        yield (b"," if begin else b"") + encode(as_json(entries[begin : begin + n]))[1:-1]


def token_text(piece: bytes) -> str:
    """A token as a string; one that is only part of a character as OpenAI writes it, `bytes:\\xe2\\x82`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _token_json(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(piece), "logprob": max(logprob, _LOGPROB_MIN), "bytes": list(piece)}
