"""The bodies and stream events of both endpoints, as OpenAI's clients expect them.

Each event has an `id`: how many output tokens the stream has told with it, and after a dot of how many choices it has told the
end, if any. A client that comes back with the last id it saw goes on after exactly that event.

Streams are written per batch of tokens and per client, so an event is put together from bytes that were encoded once for the
request; only the text goes through an encoder. That is some twenty times cheaper than building and validating an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from poise.gateway.completion_types import ChatLogprobs, ChatMessage, TokenLogprob, TokenLogprobs
from poise.gateway.segments import Mark
from poise.gateway.values import Answer, TokenEntry, Usage
from poise.gateway.writer import ResponseFormat, encode, segments_field

ENTRIES_IN_A_PIECE = 128
_LOGPROB_MIN = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON does not have."""


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
        return self._event(at, choice % (index, role, encode(text), logprobs, segments_field(marks)), usage)

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
        return self._event(at, choice % (index, content, logprobs, encode(reason), segments_field(marks)), usage)

    @property
    def body_kind(self) -> str:
        return "chat.completion"

    def choice(self, answer: Answer) -> Iterator[bytes]:
        message = encode(ChatMessage(content=answer.text))
        yield b'{"index":%d,"message":%b,"logprobs":' % (answer.index, message)
        if answer.entries is None:
            yield b"null"
        else:
            yield b'{"content":['
            yield from _joined(answer.entries, lambda entries: chat_logprobs(entries).content)
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
        return self._event(at, choice % (index, encode(text), logprobs, segments_field(marks)), usage)

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
        return self._event(at, choice % (index, encode(text), logprobs, encode(reason), segments_field(marks)), usage)

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


def chat_logprobs(entries: Sequence[TokenEntry]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            TokenLogprobs(*_logprob(entry.piece, entry.logprob), [TokenLogprob(*_logprob(*top)) for top in entry.top])
            for entry in entries
        ]
    )


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
    entries: Sequence[TokenEntry], made: Callable[[Sequence[TokenEntry]], list[Any]], n: int = ENTRIES_IN_A_PIECE
) -> Iterator[bytes]:
    """The inside of a JSON array, `n` entries a piece."""
    for begin in range(0, len(entries), n):
        yield (b"," if begin else b"") + encode(made(entries[begin : begin + n]))[1:-1]


def token_text(piece: bytes) -> str:
    """A token as a string; one that is only part of a character as OpenAI writes it, `bytes:\\xe2\\x82`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _logprob(piece: bytes, logprob: float) -> tuple[str, float, list[int]]:
    return token_text(piece), max(logprob, _LOGPROB_MIN), list(piece)
