"""The bodies and stream events of both endpoints, as OpenAI's clients expect them.

Each event has an `id`: how many output tokens the stream has told with it, and after a dot of how many choices it has told the
end, if any. A client that comes back with the last id it saw goes on after exactly that event.

Streams are written per batch of tokens and per client, so an event is put together from bytes that were encoded once for the
request; only the text goes through an encoder. That is some twenty times cheaper than building and validating an object.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from poise.gateway.segments import Mark

encode = msgspec.json.Encoder().encode

DOWNGRADED_TIER = "flex"
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


@dataclass(slots=True)
class TokenEntry:
    """A token with its log probability. `offset` is where its text begins in the answer, `end` where it is all told."""

    piece: bytes
    logprob: float
    top: list[tuple[bytes, float]]
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

    @abstractmethod
    def body(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        """The whole response of a request that did not stream."""

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

    def _body(self, kind: str, choices: list[dict[str, Any]], usage: Usage) -> bytes:
        notes = {} if self.notes is None else {"poise": self.notes}
        return encode(self.heading.as_json(kind) | {"choices": choices, "usage": usage.as_json()} | notes)


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

    def body(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        choices = [
            {
                "index": answer.index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": None if answer.entries is None else chat_logprobs(answer.entries),
                "finish_reason": answer.finish_reason,
            }
            for answer in answers
        ]
        return self._body("chat.completion", choices, usage)


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

    def body(self, answers: Sequence[Answer], usage: Usage) -> bytes:
        choices = [
            {
                "index": answer.index,
                "text": answer.text,
                "logprobs": None if answer.entries is None else completion_logprobs(answer.entries),
                "finish_reason": answer.finish_reason,
            }
            for answer in answers
        ]
        return self._body("text_completion", choices, usage)


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
    """Tells a waiting stream its place. A line that begins with a colon is a comment, which clients skip."""
    return b": queued position=%d eta_ms=%d\n\n" % (position, eta_ms)


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
    return b": %b%b%b\n\n" % (_CHANGES.get(what, what.encode()), choice, reason)


def summary_comment(n_turns: int) -> bytes:
    """Tells a waiting stream what it waits for."""
    return b": summarizing turns=%d\n\n" % n_turns


def chat_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    content = [
        _token_json(entry.piece, entry.logprob)
        | {"top_logprobs": [_token_json(piece, logprob) for piece, logprob in entry.top]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(entries: Sequence[TokenEntry]) -> dict[str, Any]:
    return {
        "tokens": [token_text(entry.piece) for entry in entries],
        "token_logprobs": [max(entry.logprob, _LOGPROB_MIN) for entry in entries],
        "top_logprobs": [
            {
                token_text(piece): max(logprob, _LOGPROB_MIN)
                for piece, logprob in [*entry.top, (entry.piece, entry.logprob)]
            }
            for entry in entries
        ],
        "text_offset": [entry.offset for entry in entries],
    }


def token_text(piece: bytes) -> str:
    """A token as a string; one that is only part of a character as OpenAI writes it, `bytes:\\xe2\\x82`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _token_json(piece: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(piece), "logprob": max(logprob, _LOGPROB_MIN), "bytes": list(piece)}
