"""Answers, piece by piece: the bytes of tokens to text that can be shown.

`Detokeniser` holds back an incomplete character, `StopScanner` what may become a stop string; an `AnswerParser` says what kind
each piece of the text that is left is of.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol


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


class AnswerParser(Protocol):
    """Says what each piece of an answer is. It may hold text back until that is certain."""

    def push(self, text: str) -> Pieces:
        """What has become certain with this text, in its order. The first piece says what the token counts as."""

    def flush(self) -> Pieces:
        """The answer ends here: what was held back of it."""


class PlainAnswer:
    """All of it is text."""

    def push(self, text: str) -> Pieces:
        return ((EntryKind.TEXT, text),)

    def flush(self) -> Pieces:
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
        return self._decoder.decode(b"", final=True)


class StopScanner:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    The first stop string is the one that is complete first; of several complete at the same character, the longest. Text
    that may still become a stop string is held back until that is decided, so no part of one is ever let through. Each
    stop string is a Knuth-Morris-Pratt automaton: the work per character does not depend on the length of the strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._borders = [_borders(stop) for stop in stops]
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
            length = self._advance(char)
            if length:
                self.stopped = True
                self._held = ""
                return seen[: i - length]
        n_shown = len(seen) - max(self._matched)
        self._held = seen[n_shown:]
        return seen[:n_shown]

    def flush(self) -> str:
        """The text ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int:
        """Length of the longest stop string that this character completes, else 0."""
        complete = 0
        for i, stop in enumerate(self._stops):
            n = self._matched[i]
            while n and stop[n] != char:
                n = self._borders[i][n - 1]
            n += stop[n] == char
            self._matched[i] = n
            if n == len(stop):
                complete = max(complete, n)
        return complete


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    for i in range(1, len(text)):
        n = borders[i - 1]
        while n and text[n] != text[i]:
            n = borders[n - 1]
        borders[i] = n + (text[n] == text[i])
    return borders
