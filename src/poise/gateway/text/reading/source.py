"""An answer as it comes, for steps that read it: what is still to be read, and what has become certain.

Steps are generators that yield where more of the answer has to come, so what they find does not depend on how it was cut."""

import re
from collections.abc import Callable, Generator, Mapping
from itertools import groupby
from typing import TypeVar

from poise.gateway.text.answers import EntryKind, Pieces
from poise.gateway.text.reading.templates import Finder

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Steps that wait where more of the answer has to come, and what they find. Raise Ended when it does not."""
Tell = Callable[[str], object]
"""Takes what was read."""

NAME_MAX = 256
_NAME = re.compile(r"[\w.\-:/]*")
_MARKS = re.compile("[\ud800-\udfff]")


class Malformed(Exception):
    """What was taken for a call is none."""


class Ended(Exception):
    """The answer is over."""


class Source:
    """The answer as it comes, and what is certain of what has come since the last `add`."""

    def __init__(self, names: Mapping[str, str]) -> None:
        """`names`: of the characters that stand for control tokens."""
        self.text = ""
        self.at = 0
        """Where that begins which is not read yet."""
        self.is_ended = False
        self._names = names
        self._pieces: list[tuple[EntryKind, str]] = []
        self._held: list[str] | None = None
        """What was read of a call whose name is not told yet."""

    def add(self, text: str, *, is_all: bool = False) -> None:
        self.text, self.at = self.text[self.at :] + text, 0
        self.is_ended = is_all

    def pieces(self) -> Pieces:
        """What has become certain; neighbours of one kind are one piece, but for names."""
        pieces, self._pieces = self._pieces, []
        if len(pieces) < 2:
            return pieces
        runs = [(kind, [text for _, text in run]) for kind, run in groupby(pieces, lambda piece: piece[0])]
        names = EntryKind.CALL_NAME
        return [(kind, text) for kind, texts in runs for text in (texts if kind is names else ["".join(texts)])]

    def emit(self, kind: EntryKind, text: str) -> None:
        # Half of a character that JSON has in two, or a control token where none belongs.
        if not text.isascii() and _MARKS.search(text):
            text = _MARKS.sub(lambda found: self._names.get(found[0], "\ufffd"), text)
        if text:
            self._pieces.append((kind, text))

    def hold(self, read: str = "") -> None:
        """What may be a call begins: what is read of it is kept until that is certain."""
        self._held = [read]

    def tell(self, name: str) -> None:
        """It is a call of this function."""
        self._held = None
        self.emit(EntryKind.CALL_NAME, name)

    def forget(self) -> None:
        """What is held is nothing to be shown."""
        self._held = None

    def release(self) -> bool:
        """It is text. False where nothing is held: its name is told."""
        held, self._held = self._held, None
        self.emit(EntryKind.TEXT, "".join(held or ()))
        return held is not None

    def take(self, end: int) -> str:
        """Read up to there."""
        read, self.at = self.text[self.at : end], end
        if self._held is not None:
            self._held.append(read)
        return read

    def more(self) -> Steps[None]:
        """Wait for more. The end of the answer is waited for as well; behind it there is none."""
        if self.is_ended:
            raise Ended
        yield

    def peek(self) -> Steps[str]:
        """The next character that is no white space, with all before it read."""
        while True:
            while self.at < len(self.text):
                if not self.text[self.at].isspace():
                    return self.text[self.at]
                self.take(self.at + 1)
            yield from self.more()

    def next_of(self, *texts: str) -> Steps[str]:
        """The longest of some texts that comes next, which is not read; "" where none does."""
        while True:
            here = self.text[self.at : self.at + max(map(len, texts), default=0)]
            if self.is_ended or not any(len(text) > len(here) and text.startswith(here) for text in texts):
                return max((text for text in texts if here.startswith(text)), key=len, default="")
            yield

    def literal(self, text: str) -> Steps[None]:
        """Read what has to come next. Raises Malformed."""
        if not (yield from self.next_of(text)):
            raise Malformed
        self.take(self.at + len(text))

    def name(self) -> Steps[str]:
        """Read the name of a function."""
        yield from self.peek()
        return (yield from self.run(_NAME, NAME_MAX))

    def run(self, pattern: re.Pattern[str], most: int = 0) -> Steps[str]:
        """Read all that a pattern of characters matches. `most` of them, and not only white space, or it is Malformed."""
        read = ""
        while True:
            found = pattern.match(self.text, self.at)
            read += self.take(found.end() if found else self.at)
            if (most and len(read) > most) or (self.at < len(self.text) and not read.strip()):
                raise Malformed
            if self.at < len(self.text):
                return read
            yield from self.more()

    def until(self, finder: Finder, tell: Tell, n_space: int = 0) -> Steps[tuple[str, str]]:
        """Read up to the first of some texts, and that, which is returned with the white space before it.

        `tell` is given what is before both. `n_space`: so many characters of white space at most count as that."""
        while True:
            begin, end = finder.find(self.text, self.at, is_all=self.is_ended)
            kept = begin
            if n_space and (end > begin or not self.is_ended):
                kept = max(self.at + len(self.text[self.at : begin].rstrip()), begin - n_space)
            tell(self.take(kept))
            if end > begin:
                return self.take(begin), self.take(end)
            yield from self.more()

    def captured(self, finder: Finder, most: int = 0) -> Steps[str]:
        """What is before the first of some texts, all of it read. `most` characters of it, or it is Malformed."""
        parts: list[str] = []
        n = 0

        def keep(text: str) -> None:
            nonlocal n
            n += len(text)
            if most and n > most:
                raise Malformed
            parts.append(text)

        yield from self.until(finder, keep)
        return "".join(parts)
