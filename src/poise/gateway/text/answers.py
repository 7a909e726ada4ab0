"""Answers, piece by piece: from the bytes of tokens to text, up to a stop string, and what kind each piece of it is of.

A `Detokeniser` holds back an incomplete character, a `StopScanner` what may become a stop string, an `AnswerParser` what may
become a mark."""

import codecs
from collections.abc import Mapping, Sequence
from enum import IntEnum


class EntryKind(IntEnum):
    """What a piece of an answer is. A record keeps it in a byte."""

    TEXT = 0
    REASONING = 1
    """What the model thought before it spoke."""
    CALL_NAME = 2
    """The name of a function: a call of it begins. Each call has one such piece."""
    CALL_ARGUMENTS = 3
    """Some of the JSON text of its arguments."""


Pieces = Sequence[tuple[EntryKind, str]]
NO_TEXT: Pieces = ((EntryKind.TEXT, ""),)
"""A piece of which nothing can be shown yet."""


class AnswerParser:
    """Says what each piece of an answer is. It may hold text back until that is certain. For this one all of it is text."""

    marks: Mapping[int, str] = {}
    """Tokens without a text that it has to see all the same, and what it is given for each."""

    def push(self, text: str) -> Pieces:
        """What has become certain with this text, in its order. The first piece says what the token counts as."""
        return ((EntryKind.TEXT, text),)

    def flush(self) -> Pieces:
        """The answer ends here: what was held back of it."""
        return ()


class Detokeniser:
    """Bytes in, text out, never half a character. Invalid bytes become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.holds_bytes = False
        """Whether an incomplete character is held back."""

    def push(self, piece: bytes) -> str:
        if not self.holds_bytes and piece.isascii():
            return piece.decode("ascii")  # past the decoder, which is written in Python
        text = self._decoder.decode(piece)
        self.holds_bytes = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What an answer that ends here still has: an incomplete character as U+FFFD."""
        self.holds_bytes = False
        return self._decoder.decode(b"", final=True)


class StopScanner:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    The first stop string is the one that is complete first; of several complete at the same character, the longest. Text
    that may still become a stop string is held back until that is decided, so no part of one is ever let through. Each
    stop string is a Knuth-Morris-Pratt automaton: the work per character does not depend on the length of the strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in stops]
        self._matched = [0] * len(stops)
        """Of each stop string, how many characters the text seen so far ends with."""
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown now. After a stop string there is none any more."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        for i, char in enumerate(text, start=len(self._held) + 1):
            complete = 0
            for k, (stop, borders) in enumerate(self._stops):
                self._matched[k] = n = _step(stop, borders, self._matched[k], char)
                if n == len(stop):
                    complete = max(complete, n)
            if complete:
                self.stopped, self._held = True, ""
                return seen[: i - complete]
        n_shown = len(seen) - max(self._matched)
        self._held = seen[n_shown:]
        return seen[:n_shown]

    def flush(self) -> str:
        """The text ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held


def _step(stop: str, borders: Sequence[int], n: int, char: str) -> int:
    """How much of a stop string a text ends with, if it was `n` characters before this one."""
    while n and stop[n] != char:
        n = borders[n - 1]
    return n + (stop[n] == char)


def _borders(stop: str) -> list[int]:
    """For each prefix of a stop string, the length of its longest proper prefix that is also its suffix."""
    borders = [0]
    for char in stop[1:]:
        borders.append(_step(stop, borders, borders[-1], char))
    return borders
