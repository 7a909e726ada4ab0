"""The bodies and stream events of both endpoints, as OpenAI's clients expect them.

Where the reader wants it, each event has an `id`: how many entries of the record the stream has sent with it, and after a dot of
how many choices it has sent the end, if any. A client that comes back with the last id it saw goes on after exactly that event.

Streams are written per batch of tokens and per client, so an event is put together from bytes that were encoded once for the
request; only the text goes through an encoder. That is some twenty times cheaper than building and validating an object."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from math import isnan
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET

from poise.gateway.api.openai.completion_types import (
    FINISH_REASONS,
    CallMade,
    ChatLogprobs,
    ChatMessage,
    FunctionCalled,
    TokenLogprob,
    TokenLogprobs,
    finish_reason,
)
from poise.gateway.records.values import Answer, Logprob, Notes
from poise.gateway.records.writer import Answered, Writer, comment, event
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.answers import EntryKind
from poise.gateway.text.segments import Segmenter
from poise.scheduler.request import FinishReason

encode = msgspec.json.Encoder().encode
_TEXT = EntryKind.TEXT
DOWNGRADED_TIER = "flex"
LOGPROBS_IN_A_PIECE = 128
_EVENT = b'%b%b{"index":%d,%b,"logprobs":%b,"finish_reason":%b%b}%b}\n\n'
_LOGPROB_MIN = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON does not have."""


class OpenAIWriter(Writer):
    """What both endpoints share: a heading that everything repeats, ids, usage, and `[DONE]`.

    Where usage was asked for, each event has a `usage`: null, or with `continuous_usage` the tokens so far. What the answer says
    about how it was made is a field `poise`: of the body, or of the first event of a reader for which it is known. There, or in
    the last event of a choice, it says what cut an answer short."""

    chunk_kind: ClassVar[str]
    body_kind: ClassVar[str]

    def __init__(self, answered: Answered) -> None:
        self._answered = answered
        self._options = options = answered.options
        self._counts = options.continuous_usage
        self._tier = options.service_tier
        self._opened: set[int] = set()
        """The choices that the reader has had anything of."""
        self._n_calls: dict[int, int] = defaultdict(int)
        """Of each choice, the calls that the reader has had the name of."""
        self._has_notes = False
        """The reader has been sent how the answer was made."""
        self._segmenters: dict[int, Segmenter] | None = defaultdict(Segmenter) if options.segments else None
        self._tail = b'],"usage":null' if options.include_usage or options.continuous_usage else b"]"
        self._prefix = b""

    def passed(self, choice: int, text: str, kind: EntryKind = _TEXT) -> None:
        self._opened.add(choice)
        self._n_calls[choice] += kind is EntryKind.CALL_NAME
        self._marks(choice, text, kind)

    def downgrade(self) -> None:
        self._tier = DOWNGRADED_TIER
        self._prefix = b""

    def text(
        self, n_entries: int, n_ends: int, choice: int, text: str, logprobs: Sequence[Logprob] | None, kind: EntryKind = _TEXT
    ) -> bytes:
        is_first = choice not in self._opened
        self._opened.add(choice)
        self._n_calls[choice] += kind is EntryKind.CALL_NAME
        marks, shown = self._marks(choice, text, kind), b"null" if logprobs is None else self._logprobs(logprobs)
        return self._event(n_entries, n_ends, choice, self._delta(choice, text, is_first, kind), shown, None, marks)

    def end(self, n_entries: int, n_ends: int, choice: int, reason: str, text: str, logprobs: Sequence[Logprob] | None) -> bytes:
        opening = b""
        if choice not in self._opened:
            opening = self.text(n_entries, n_ends - 1, choice, "", None if logprobs is None else ())
        marks, shown = self._marks(choice, text, is_end=True), self._logprobs(logprobs) if logprobs else b"null"
        said = self._ended(reason, self._n_calls[choice])
        return opening + self._event(n_entries, n_ends, choice, self._last(text), shown, said, marks)

    def note(self, what: str, choice: int | None, detail: Mapping[str, Any]) -> bytes:
        return comment(what, choice, detail, has_ids=self.has_ids)

    def close(self, n_entries: int, n_ends: int) -> bytes:
        at, usage = self.at(n_entries, n_ends), b""
        if self._options.include_usage:
            usage = b'%b%b],"usage":%b}\n\n' % (at, self._begin(), self._usage(n_entries))
        return usage + event(at, b"[DONE]")

    def failed(self, n_entries: int, n_ends: int, error: ApiError) -> bytes:
        return event(self.at(n_entries, n_ends), error.body())

    def body(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        yield self._heading(self.body_kind) + b',"choices":['
        for n, answer in enumerate(answers):
            yield b"," if n else b""
            yield from self._choice(answer)
        yield b'],"usage":' + self._usage(None) + self._notes(*(answer.finish_reason for answer in answers)) + b"}"

    @abstractmethod
    def _delta(self, choice: int, text: str, is_first: bool, kind: EntryKind) -> bytes:
        """The field of a choice that has some of its text. `is_first`: it opens the choice."""

    def _last(self, text: str) -> bytes:
        """The same at the end of the choice."""
        return self._delta(0, text, False, _TEXT)

    def _ended(self, reason: str, n_calls: int) -> str:
        """How a choice ended, as clients are told that have been sent all of it."""
        return reason

    def _marks(self, choice: int, text: str, kind: EntryKind = _TEXT, *, is_end: bool = False) -> bytes:
        """The ends of segments. There is no such field where there is nothing to mark."""
        if self._segmenters is None or kind is not _TEXT:
            return b""
        segmenter = self._segmenters[choice]
        marks = segmenter.push(text) + (segmenter.flush() if is_end else [])
        return b',"segments":' + encode(marks) if marks else b""

    @abstractmethod
    def _logprobs(self, logprobs: Sequence[Logprob]) -> bytes:
        """The log probabilities of an event."""

    @abstractmethod
    def _choice(self, answer: Answer) -> Iterator[bytes]:
        """One choice of the whole response."""

    def _begin(self) -> bytes:
        """Of each event; made for the first one: before that it may not be known who answers."""
        self._prefix = self._prefix or b"data: " + self._heading(self.chunk_kind) + b',"choices":['
        return self._prefix

    def _heading(self, kind: str) -> bytes:
        """An open object, with what every body and event repeats."""
        heading = self._answered.heading
        fields = {
            "id": heading.response_id,
            "object": kind,
            "created": heading.created,
            "model": heading.model,
            "service_tier": self._tier,
            "system_fingerprint": heading.fingerprint,
        }
        return encode(fields)[:-1]

    def _event(
        self, n_entries: int, n_ends: int, choice: int, delta: bytes, logprobs: bytes, reason: str | None, marks: bytes
    ) -> bytes:
        tail = self._tail
        if self._counts:
            tail = b'],"usage":' + self._usage(n_entries)
        shown = b"null"
        if reason is not None:
            shown = encode(finish_reason(reason))
            tail += self._notes(reason)
        elif not self._has_notes:
            tail += self._notes()
        at = self.at(n_entries, n_ends)
        return _EVENT % (at, self._begin(), choice, delta, logprobs, shown, marks, tail)

    def _usage(self, n_entries: int | None) -> bytes:
        return encode(self._answered.usage(n_entries).as_sent())

    def _notes(self, *ended_by: str) -> bytes:
        """The field that says how the answer was made, for the first who asks when that is known, and how the choices ended that
        were cut short."""
        notes = None if self._has_notes else self._answered.notes
        self._has_notes |= notes is not None
        if any(reason not in FINISH_REASONS for reason in ended_by):
            notes = msgspec.structs.replace(notes or Notes(), outcome="+".join(dict.fromkeys(ended_by)))
        return b"" if notes is None else b',"poise":' + encode(notes)


class ChatWriter(OpenAIWriter):
    chunk_kind, body_kind = "chat.completion.chunk", "chat.completion"

    def opening(self, n_choices: int) -> bytes:
        self._opened.update(range(n_choices))
        made = (self._delta(choice, "", True, _TEXT) for choice in range(n_choices))
        return b"".join(self._event(0, 0, choice, delta, b"null", None, b"") for choice, delta in enumerate(made))

    def _delta(self, choice: int, text: str, is_first: bool, kind: EntryKind) -> bytes:
        opening = b'"delta":{"role":"assistant",' if is_first else b'"delta":{'
        if kind <= EntryKind.REASONING:
            return b'%b"%b":%b}' % (opening, b"reasoning_content" if kind else b"content", encode(text))
        n, has_name = self._n_calls[choice] - 1, kind is EntryKind.CALL_NAME
        if has_name and is_first:
            opening += b'"content":null,'
        function = {"name": text, "arguments": ""} if has_name else {"arguments": text}
        if self._options.legacy_calls:
            return b'%b"function_call":%b}' % (opening, encode(function))
        heading = {"id": self._call_id(choice, n), "type": "function"} if has_name else {}
        return b'%b"tool_calls":[%b]}' % (opening, encode({"index": n, **heading, "function": function}))

    def _ended(self, reason: str, n_calls: int) -> str:
        if reason != FinishReason.STOP or not n_calls:
            return reason
        return "function_call" if self._options.legacy_calls else "tool_calls"

    def _call_id(self, choice: int, n: int) -> str:
        """Of the n-th call of a choice, the same for every reader. Nobody can guess it who does not know the response's."""
        name = f"{self._answered.heading.response_id}/{choice}/{n}"
        return f"call_{sha256(name.encode()).hexdigest()[:24]}"

    def _message(self, answer: Answer) -> ChatMessage:
        functions = [FunctionCalled(call.name, call.arguments) for call in answer.calls]
        made = [CallMade(id=self._call_id(answer.index, n), function=function) for n, function in enumerate(functions)]
        return ChatMessage(
            content=answer.text or (None if functions else ""),
            reasoning_content=answer.reasoning or UNSET,
            tool_calls=made if made and not self._options.legacy_calls else UNSET,
            function_call=functions[0] if functions and self._options.legacy_calls else UNSET,
        )

    def _last(self, text: str) -> bytes:
        return super()._last(text) if text else b'"delta":{}'

    def _logprobs(self, logprobs: Sequence[Logprob]) -> bytes:
        return encode(ChatLogprobs([_chat_logprob(token) for token in logprobs]))

    def _choice(self, answer: Answer) -> Iterator[bytes]:
        yield b'{"index":%d,"message":%b,"logprobs":' % (answer.index, encode(self._message(answer)))
        if answer.logprobs is None:
            yield b"null"
        else:
            yield b'{"content":['
            yield from _joined(answer.logprobs, _chat_logprob)
            yield b'],"refusal":null}'
        yield b',"finish_reason":%b}' % encode(finish_reason(self._ended(answer.finish_reason, len(answer.calls))))


class CompletionWriter(OpenAIWriter):
    chunk_kind = body_kind = "text_completion"

    def _delta(self, choice: int, text: str, is_first: bool, kind: EntryKind) -> bytes:
        return b'"text":' + encode(text)

    def _logprobs(self, logprobs: Sequence[Logprob]) -> bytes:
        return encode({name: [field(token) for token in logprobs] for name, field in _COMPLETION_LOGPROBS.items()})

    def _choice(self, answer: Answer) -> Iterator[bytes]:
        yield b'{"index":%d,"text":%b,"logprobs":' % (answer.index, encode(answer.text))
        if answer.logprobs is None:
            yield b"null"
        else:
            for n, (name, field) in enumerate(_COMPLETION_LOGPROBS.items()):
                yield b"%b%b:[" % (b"," if n else b"{", encode(name))
                yield from _joined(answer.logprobs, field)
                yield b"]"
            yield b"}"
        yield b',"finish_reason":%b}' % encode(finish_reason(answer.finish_reason))


def _chat_logprob(token: Logprob) -> TokenLogprobs:
    top = [TokenLogprob(*_logprob(*each)) for each in token.top]
    return TokenLogprobs(*_logprob(token.piece, token.logprob), top)


_COMPLETION_LOGPROBS: dict[str, Callable[[Logprob], Any]] = {
    "tokens": lambda token: token_text(token.piece),
    "token_logprobs": lambda token: None if isnan(token.logprob) else max(token.logprob, _LOGPROB_MIN),
    "top_logprobs": lambda token: (
        None
        if isnan(token.logprob)
        else {token_text(piece): max(logprob, _LOGPROB_MIN) for piece, logprob in [*token.top, (token.piece, token.logprob)]}
    ),
    "text_offset": lambda token: token.offset,
}


def _joined(logprobs: Sequence[Logprob], made: Callable[[Logprob], Any]) -> Iterator[bytes]:
    """The inside of a JSON array, with what is made of each entry."""
    for begin in range(0, len(logprobs), LOGPROBS_IN_A_PIECE):
        made_now = [made(token) for token in logprobs[begin : begin + LOGPROBS_IN_A_PIECE]]
        yield (b"," if begin else b"") + encode(made_now)[1:-1]


def token_text(piece: bytes) -> str:
    """A token as a string; one that is only part of a character as OpenAI writes it, `bytes:\\xe2\\x82`."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


def _logprob(piece: bytes, logprob: float) -> tuple[str, float, list[int]]:
    return token_text(piece), max(logprob, _LOGPROB_MIN), list(piece)
