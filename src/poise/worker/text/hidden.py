"""What a chat template is not shown: contents, each behind a placeholder, and the marks in them that it looks for.

A template that cuts the reasoning of an earlier turn out of a content looks for `</think>` in it. Texts that the template
itself names (its marks) therefore stand in a content as they are, but written in twins: each character is exchanged for one of
a private-use plane, and so are the texts that the template looks for (see `dialect`). After rendering, twins and placeholders
become contents again, so that no mark that a caller wrote passes for one of the template's.

White space around contents and marks stays outside, so that `trim` and its like work as intended, and an empty content stays
empty."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_OPEN, _CLOSE = "\uf8f0", "\uf8f1"
_TWINS = 0xF0000
PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_TWIN = f"[{chr(_TWINS)}-{chr(_TWINS + 0xFFFD)}]"
HIDDEN = re.compile(f"{PLACEHOLDER.pattern}|({_TWIN}+)")
_ANY_TWIN = re.compile(_TWIN)
_FOREIGN = re.compile(f"(?!{_TWIN})[^\\x00-\\x7f{_OPEN}{_CLOSE}]")
_PLAIN = re.compile(r"[\w .,:/+-]{0,128}", re.ASCII)
"""Values that are shown to a template as they are: none of them is a control token."""


class CutError(ValueError):
    """A template has cut a placeholder in two."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a rendered conversation, and whether it is a caller's content or the template's own literal."""

    text: str
    is_content: bool


class Hidden:
    """The texts of one rendering that its template is not shown."""

    def __init__(self, marks: Iterable[str] = ()) -> None:
        self._marks = marks
        self._places: list[tuple[str, int | None]] = []
        """Texts and owners, by the numbers of their placeholders."""
        self._used: set[int | None] = set()
        """Owners of what is in the result."""
        self.marked: set[int | None] = set()
        """Messages with a mark."""

    def hide(self, text: str, owner: int | None = None) -> str:
        """What stands for a text. `owner`: the number of the message whose content it is."""
        found = [mark for mark in self._marks if mark in text]
        if not found:
            return self._place(text, owner)
        self.marked.add(owner)
        longest_first = "|".join(re.escape(mark) for mark in sorted(found, key=len, reverse=True))
        parts = re.split(f"({longest_first})", text)
        return "".join(twins(part) if i % 2 else self._place(part, owner) for i, part in enumerate(parts))

    def value(self, value: Any) -> Any:
        """A JSON value with what could be a control token hidden; what it is compared with is a plain word."""
        if isinstance(value, str):
            return value if _PLAIN.fullmatch(value) else self._place(value, None)
        if isinstance(value, dict):
            return {self.value(key): self.value(inner) for key, inner in value.items()}
        return [self.value(inner) for inner in value] if isinstance(value, list) else value

    def left_out(self) -> list[int]:
        """Messages of which no text is in the result."""
        return sorted({owner for _, owner in self._places if owner is not None} - self._used)

    def in_json(self, text: str, *, ensure_ascii: bool) -> str:
        """A JSON text with the contents in its strings escaped, as the whole would be."""

        def escape(found: re.Match[str]) -> str:
            content, owner = self._places[int(found[1])]
            return self._numbered(json.dumps(content, ensure_ascii=ensure_ascii)[1:-1], owner)

        if ensure_ascii:
            text = _FOREIGN.sub(lambda found: json.dumps(found[0])[1:-1], text)
        return PLACEHOLDER.sub(escape, text)

    def pieces(self, rendered: str) -> list[Piece]:
        """A rendered text with the contents back in their places. Raises CutError."""
        pieces: list[Piece] = []
        end = 0
        for found in HIDDEN.finditer(rendered):
            self._literal(pieces, rendered[end : found.start()])
            end = found.end()
            if found[1] is None:
                text = "".join(chr(ord(char) - _TWINS) for char in found[2])
            else:
                text, owner = self._places[int(found[1])]
                self._used.add(owner)
            pieces.append(Piece(text, is_content=True))
        self._literal(pieces, rendered[end:])
        return pieces

    def _literal(self, pieces: list[Piece], text: str) -> None:
        if _OPEN in text or _CLOSE in text:
            raise CutError
        if text:
            pieces.append(Piece(text, is_content=False))

    def _place(self, text: str, owner: int | None) -> str:
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        return f"{text[:start]}{self._numbered(core, owner)}{text[start + len(core) :]}"

    def _numbered(self, text: str, owner: int | None) -> str:
        self._places.append((text, owner))
        return f"{_OPEN}{len(self._places) - 1}{_CLOSE}"


def twins(text: str) -> str:
    """The same text in characters that no template writes; white space stays."""
    return "".join(char if char.isspace() or ord(char) > 0xFFFD else chr(ord(char) + _TWINS) for char in text)


def has_twins(text: str) -> bool:
    """Whether marks of a caller's are in it."""
    return _ANY_TWIN.search(text) is not None
