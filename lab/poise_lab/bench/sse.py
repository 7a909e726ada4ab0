"""The answer stream: bytes in, chunks of text out. No I/O and no clock; a fragment may end anywhere.

Only what the measurement needs is decoded: the text, what the usage says, is it an error, is it the end. A server
sends one JSON object in one `data:` line; other fields and comments (keep-alives) are skipped."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

LINE_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class EventDecoder:
    """Splits a stream into lines and keeps what they said. `feed` modifies it and returns the new content chunks' number."""

    done: bool = False
    error: str | None = None
    n_prompt_tokens: int | None = None
    n_output_tokens: int | None = None
    texts: list[str] = field(default_factory=list, repr=False)
    """The answer, chunk by chunk, without a reasoning model's thoughts: what a client shows and sends back."""
    _rest: bytes = field(default=b"", repr=False)

    def feed(self, data: bytes) -> int:
        """The number of content chunks that `data` completes. After an error or the end the rest is ignored."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > LINE_BYTES_MAX:
            self.error, self._rest = "line_too_long", b""
        n_content = 0
        for line in lines:
            if self.done or self.error is not None:
                break
            if line.startswith(b"data:"):
                n_content += self._take(line[5:].strip())
        return n_content

    def _take(self, payload: bytes) -> int:
        if payload == b"[DONE]":
            self.done = True
            return 0
        try:
            chunk = _decode_chunk(payload)
        except msgspec.MsgspecError:
            self.error = "bad_chunk"
            return 0
        if chunk.error is not None:
            self.error = error_type(payload)
            return 0
        if chunk.usage is not None:
            self.n_prompt_tokens = chunk.usage.prompt_tokens
            self.n_output_tokens = chunk.usage.completion_tokens
        deltas = [choice.delta for choice in chunk.choices if choice.delta is not None]
        self.texts += [delta.content for delta in deltas if delta.content]
        # A reasoning model's thoughts are tokens that somebody waits for, too.
        return int(any(delta.content or delta.reasoning_content for delta in deltas))


def error_type(body: bytes) -> str:
    """The `type` of an OpenAI error body, in a few safe characters; what it can say of any other body."""
    try:
        value = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return "unknown"
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        value = value["error"]
    named = value.get("type") or value.get("code") if isinstance(value, dict) else None
    word = "".join(c for c in str(named or "unknown")[:48] if c.isascii() and (c.isalnum() or c in "_-."))
    return word or "unknown"


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
