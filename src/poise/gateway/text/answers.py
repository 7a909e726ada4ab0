"""Answers, piece by piece: what kind each piece of their text is of.

Before that a `Detokeniser` (in `pieces`) holds back an incomplete character, and a `StopScanner` (in `stops`) what may become a
stop string."""

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
