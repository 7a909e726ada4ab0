"""What an answer of another server consists of, whatever its format, and how it is read: bytes in, events out.

What holds nothing of an answer makes no event: a chunk with a role alone, a ping, the start of a message. Texts of errors are for
the caller whose request it was, as they may quote it: they are in no log."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from poise.gateway.models.remote.sse import LINE_BYTES_MAX, EventLines, ServerEvent, TooLong
from poise.gateway.records.values import Logprob
from poise.gateway.text.answers import EntryKind

MESSAGE_CHARS_MAX = 1000
NO_ANSWER, INCOMPLETE, TOO_LARGE, ERROR = "upstream_broken", "upstream_incomplete", "upstream_too_large", "upstream_error"
"""Codes of failures that the other server has not named."""


@dataclass(frozen=True, slots=True)
class Delta:
    """Some text of a choice. Arguments of a call belong to the one that was called last."""

    choice: int
    kind: EntryKind
    text: str
    logprobs: Sequence[Logprob] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins."""

    choice: int
    name: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """A choice is complete. `reason`: stop (also where it has calls), length or content_filter."""

    choice: int
    reason: str


@dataclass(frozen=True, slots=True)
class Used:
    """The tokens of the whole answer so far; `cached` are of the prompt, `reasoning` of the output."""

    prompt: int
    cached: int
    output: int
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """There is nothing more. `status`: the one that the server would have answered with, if it says so."""

    code: str
    message: str
    status: int | None = None


Event = Delta | Called | Ended | Used | Failed


def failure_of(body: bytes, status: int | None = None) -> Failed:
    """What the body of an error says. Both formats have it in a field `error`; what is none of them is not repeated."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        decoded = None
    return failure(decoded.get("error", decoded) if isinstance(decoded, dict) else None, status)


def failure(error: Any, status: int | None = None) -> Failed:
    """An error object, in the many ways in which servers write them."""
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return Failed(ERROR, "the server gave no reason", status)
    said = error.get("message") or error.get("detail")
    code = next((error[name] for name in ("code", "type") if isinstance(error.get(name), str) and error[name]), ERROR)
    found = error.get("code") if isinstance(error.get("code"), int) else error.get("status")
    if status is None and type(found) is int and 400 <= found <= 599:
        status = found
    text = said if isinstance(said, str) and said else "the server gave no reason"
    return Failed(code[:64], text[:MESSAGE_CHARS_MAX], status)


class AnswerReader(ABC):
    """Reads one answer. After a failure, or the end, it takes nothing more."""

    def __init__(self, n_choices: int = 1) -> None:
        self._lines = EventLines()
        self._whole: bytearray | None = None
        """An answer that is no stream: an error, most often."""
        self._has_begun = False
        self._n_choices = n_choices
        self._open = set(range(n_choices))
        self.is_over = False
        """Nothing that matters can come any more."""

    def feed(self, data: bytes) -> list[Event]:
        """What has become known with these bytes."""
        if not self._has_begun and (head := data.lstrip()):
            self._has_begun = True
            self._whole = bytearray() if head[:1] == b"{" else None
        if self._whole is None:
            return self._gather(self._read_all(self._lines.feed(data)))
        return self._gather(self._keep(data))

    def end(self) -> list[Event]:
        """The bytes are over: what is left of them, or that something is missing."""
        if self._whole is not None:
            return self._gather(self._read_whole(bytes(self._whole))) + self._missing()
        return self._gather(self._read_all(self._lines.flush())) + self._missing()

    @abstractmethod
    def _read(self, name: str, data: bytes) -> Iterable[Event]:
        """An event of the stream. May raise msgspec's errors."""

    @abstractmethod
    def _read_whole(self, body: bytes) -> Iterable[Event]:
        """An answer that is no stream."""

    def _ended(self, choice: int, reason: str) -> Iterator[Event]:
        """Once for each choice, whatever the server repeats."""
        if choice in self._open:
            self._open.discard(choice)
            yield Ended(choice, reason)

    def _read_all(self, events: Iterable[ServerEvent]) -> Iterator[Event]:
        for name, data in events:
            if not self.is_over:
                yield from self._read(name, data)

    def _keep(self, data: bytes) -> Iterator[Event]:
        assert self._whole is not None
        self._whole += data
        if len(self._whole) > LINE_BYTES_MAX:
            raise TooLong
        yield from ()

    def _missing(self) -> list[Event]:
        if self.is_over or not self._open:
            return []
        self.is_over = True
        return [Failed(INCOMPLETE, "the server's answer broke off")]

    def _gather(self, events: Iterable[Event]) -> list[Event]:
        found, was_over = list[Event](), self.is_over
        if was_over:
            return found
        try:
            for event in events:
                found.append(event)
                if isinstance(event, Failed):
                    break
        except (TooLong, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            if self.is_over:
                return found
            if isinstance(error, TooLong):
                found.append(Failed(TOO_LARGE, f"the server sent an event of more than {LINE_BYTES_MAX} bytes"))
            else:
                found.append(Failed(NO_ANSWER, "the server sent something that is no part of an answer"))
        self.is_over = self.is_over or (bool(found) and isinstance(found[-1], Failed))
        return found
