"""How answers are written: the port that readers of records write through, and what server-sent events of any dialect share.

A record knows no dialect. It is given a `MakeWriter`, and each of its readers has a writer of its own, which knows what that
reader has been sent. `n_entries` and `n_ends` are the place behind what is written: entries, and ends of choices."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from poise.gateway.records.changes import DOWNGRADED, MEANINGS
from poise.gateway.records.values import Answer, Heading, Logprob, Notes, Usage
from poise.gateway.request.generate import AnswerOptions
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.answers import EntryKind
from poise.wire.changes import ChangeKind

TEXT = EntryKind.TEXT


class Answered(Protocol):
    """What a writer sees of a record."""

    heading: Heading
    options: AnswerOptions
    notes: Notes | None
    """How the answer was made, as soon as that is known."""

    def usage(self, n_entries: int | None = None) -> Usage:
        """Tokens up to a place, or so far."""


class Writer(ABC):
    """Writes one answer for one reader: piece by piece, or as a whole (`body`)."""

    has_ids = False
    """Events say their place, for a reader that has asked for it. Simple readers know lines of `data:` only."""

    def at(self, n_entries: int, n_ends: int) -> bytes:
        """The line with an event's place, if there is to be one."""
        return b"id: %b\n" % event_id(n_entries, n_ends) if self.has_ids else b""

    @abstractmethod
    def passed(self, choice: int, text: str, kind: EntryKind = TEXT) -> None:
        """The reader has this of a choice already; what is written goes on behind it. Before anything is written.

        Called for each run of pieces of one kind, in their order; a CALL_NAME is a run by itself."""

    def opening(self, n_choices: int) -> bytes:
        """What is sent once the request was taken, before anything of it is there; many dialects have no word for it."""
        return b""

    @abstractmethod
    def downgrade(self) -> None:
        """From here on the request is background work."""

    @abstractmethod
    def text(
        self, n_entries: int, n_ends: int, choice: int, text: str, logprobs: Sequence[Logprob] | None, kind: EntryKind = TEXT
    ) -> bytes:
        """A piece of a choice, of one kind. `logprobs` None: they were not asked for."""

    @abstractmethod
    def end(self, n_entries: int, n_ends: int, choice: int, reason: str, text: str, logprobs: Sequence[Logprob] | None) -> bytes:
        """The end of a choice, with the text that was held back until then."""

    @abstractmethod
    def note(self, what: str, choice: int | None, detail: Mapping[str, Any]) -> bytes:
        """Something that is no part of the answer: QUEUED, SUMMARIZING, KEEP_ALIVE, or a change of a choice's place.

        `choice` None: there is only one, or it concerns all."""

    @abstractmethod
    def close(self, n_entries: int, n_ends: int) -> bytes:
        """What comes behind the end of every choice."""

    @abstractmethod
    def failed(self, n_entries: int, n_ends: int, error: ApiError) -> bytes:
        """What an answer ends with that cannot go on, in place of `close`."""

    @abstractmethod
    def body(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """The whole response of a request that does not stream, in pieces that take a few milliseconds each."""


MakeWriter = Callable[[Answered], Writer]
"""Makes the writer for one more reader."""

QUEUED, SUMMARIZING, KEEP_ALIVE, PREFILLED = "queued", "summarizing", "keep-alive", "prefilled"
"""Notes with `position` and `eta_ms`, with the number of `turns`, with nothing but that the stream lives, and with the tokens
`computed`, `of` how many, and `eta_ms`."""

_WORDS = {KEEP_ALIVE: KEEP_ALIVE.encode(), ChangeKind.DOWNGRADE: DOWNGRADED}


def event_id(n_entries: int, n_ends: int) -> bytes:
    """A place, as an event's id has it."""
    return b"%d.%d" % (n_entries, n_ends) if n_ends else b"%d" % n_entries


def event(at: bytes, data: bytes) -> bytes:
    """`at`: the line with its place, or nothing."""
    return b"%bdata: %b\n\n" % (at, data)


def comment(what: str, choice: int | None, detail: Mapping[str, Any], *, has_ids: bool) -> bytes:
    """A note as a line that begins with a colon, which clients skip.

    An empty line follows, since some clients take whatever lies between two of them for an event, and would drop the one that is
    glued to a comment. Not where events have ids: OpenAI's client takes an empty line behind one for another event, without data.
    """
    return _note(what, choice, detail) + (b"" if has_ids else b"\n")


def _note(what: str, choice: int | None, detail: Mapping[str, Any]) -> bytes:
    if what == QUEUED:
        return b": queued position=%d eta_ms=%d\n" % (detail["position"], detail["eta_ms"])
    if what == PREFILLED:
        return f": prefill {detail['computed']:,} of {detail['of']:,} eta_ms={detail['eta_ms']}\n".encode()
    if what == SUMMARIZING:
        return b": summarizing turns=%d\n" % detail["turns"]
    word = _WORDS[what] if what in _WORDS else MEANINGS[what].comment
    index = b"" if choice is None else b" choice=%d" % choice
    name = b"recomputed" if what == ChangeKind.RECOVER else b"why"
    reason = b" %b=%b" % (name, why.encode()) if (why := detail.get("why", "")) else b""
    return b": %b%b%b\n" % (word, index, reason)
