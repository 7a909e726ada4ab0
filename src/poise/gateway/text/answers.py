"""Answers, piece by piece: the bytes of tokens to text that can be shown.

`Detokeniser` holds back an incomplete character, `StopScanner` (in `stops`) what may become a stop string; an `AnswerParser` says
what kind each piece of the text that is left is of.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
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

    marks: Mapping[int, str]
    """Tokens without a text that it has to see all the same, and what it is given for each."""

    def push(self, text: str) -> Pieces:
        """What has become certain with this text, in its order. The first piece says what the token counts as."""

    def flush(self) -> Pieces:
        """The answer ends here: what was held back of it."""


class PlainAnswer:
    """All of it is text."""

    marks: Mapping[int, str] = {}

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
        self.holds_bytes = False
        return self._decoder.decode(b"", final=True)
