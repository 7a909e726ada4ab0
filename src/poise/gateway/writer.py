"""What streams and bodies are made of, for any endpoint: events with ids, comments, and the shape of the answers to a request."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from poise.gateway.changes import DOWNGRADED, MEANINGS
from poise.gateway.segments import Mark
from poise.gateway.values import Answer, Heading, Notes, TokenEntry, Usage
from poise.wire.changes import ChangeKind

encode = msgspec.json.Encoder().encode
DOWNGRADED_TIER = "flex"


@dataclass(slots=True)
class ResponseFormat(ABC):
    """One response's bodies and events. With `usage_field`, events have a `usage`, null unless one is given.

    `notes` is what the answer says about how it was made, in a field `poise`: of the body, or of a stream's first event.
    """

    heading: Heading
    usage_field: bool = False
    notes: Notes | None = None
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
        yield b'],"usage":' + encode(usage.as_sent()) + self._untold + b"}"

    @property
    @abstractmethod
    def body_kind(self) -> str: ...

    @abstractmethod
    def choice(self, answer: Answer) -> Iterator[bytes]:
        """One choice of the whole response."""

    def usage_event(self, at: bytes, usage: Usage) -> bytes:
        return b'id: %b\n%b],"usage":%b}\n\n' % (at, self._prefix, encode(usage.as_sent()))

    def _begin(self) -> bytes:
        return b"data: " + encode(self.heading.as_json(self.chunk_kind))[:-1] + b',"choices":['

    def _event(self, at: bytes, choice: bytes, usage: Usage | None) -> bytes:
        notes, self._untold = self._untold, b""
        if usage is not None:
            tail = b'],"usage":' + encode(usage.as_sent()) + notes
        else:
            tail = (b'],"usage":null' if self.usage_field else b"]") + notes
        return b"id: %b\n%b%b%b}\n\n" % (at, self._prefix, choice, tail)


@dataclass(slots=True)
class Shape:
    """What the answers to one request look like: enough to write them again for a reader who comes later.

    `notes`: see ResponseFormat; they can come after the rest.
    """

    kind: type[ResponseFormat]
    heading: Heading
    include_usage: bool = False
    continuous_usage: bool = False
    notes: Notes | None = None
    segments: bool = False

    def format(self) -> ResponseFormat:
        return self.kind(self.heading, self.include_usage or self.continuous_usage, self.notes)


def segments_field(marks: Sequence[Mark]) -> bytes:
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


def change_comment(what: str, why: str, index: int | None) -> bytes:
    """Tells a stream what became of its place in the engine. `index`: of the choice, where there are several."""
    word = DOWNGRADED if what == ChangeKind.DOWNGRADE else MEANINGS[what].comment
    choice = b"" if index is None else b" choice=%d" % index
    name = b"recomputed" if what == ChangeKind.RECOVER else b"why"
    reason = b" %b=%b" % (name, why.encode()) if why else b""
    return b": %b%b%b\n" % (word, choice, reason)


def summary_comment(n_turns: int) -> bytes:
    """Tells a waiting stream what it waits for."""
    return b": summarizing turns=%d\n" % n_turns
