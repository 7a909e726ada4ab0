"""Where headings, lists, paragraphs, code blocks and sentences begin and end in a text that is still being written.

`Segmenter` reads the Markdown that models write, in pieces of any size, and returns marks as soon as they are certain: none is
ever taken back, and none depends on how the text was cut. A mark can refer to an earlier place than the text that made it
certain: a paragraph has ended at its last letter, but only an empty line says so. Text is never held back for that.

Every segment runs from its first character to behind its last one that is not white space, marks of the format included.
They nest: a list holds items; an item holds sentences, lists, code, quotes and tables; a paragraph and a quote hold sentences. It
is CommonMark as far as models use it, with two liberties: a line that is not indented ends a list (there are no "lazy"
continuations), and headings underlined with `===` or `---` are not known."""

from enum import Enum, auto
from typing import Any, NamedTuple

import msgspec

from poise.gateway.text.line_heads import HEAD_MAX, Line, LineKind, read_code_head, read_head
from poise.gateway.text.sentences import Sentences

HEADING, PARAGRAPH, SENTENCE = "heading", "paragraph", "sentence"
LIST, ITEM = "list", "item"
CODE, TABLE, QUOTE = "code", "table", "quote"
KINDS = (HEADING, LIST, ITEM, PARAGRAPH, CODE, TABLE, QUOTE, SENTENCE)
BEGIN, END = "begin", "end"


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """A segment begins or ends at `offset`, in characters (Unicode code points). What is known of it comes with its beginning."""

    kind: str
    event: str
    offset: int
    level: int | None = None
    """Of a heading 1 to 6; of a list, how many lists it is in, itself included."""
    ordered: bool | None = None
    """Of a list and its items."""
    language: str | None = None
    """Of a code block that names one."""


MARKS_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "description": "With `stream_options.segments`: marks that became certain. Only where there are any.",
    "items": {
        "type": "object",
        "properties": {
            "kind": {"type": "string", "enum": list(KINDS)},
            "event": {"type": "string", "enum": [BEGIN, END]},
            "offset": {"type": "integer", "minimum": 0, "description": "In characters of the choice's text."},
            "level": {"type": "integer", "minimum": 1, "description": "Of a heading, or of a list within lists."},
            "ordered": {"type": "boolean", "description": "Of a list or an item."},
            "language": {"type": "string", "description": "Of a code block that names one."},
        },
        "required": ["kind", "event", "offset"],
        "additionalProperties": False,
    },
}


class _Block(NamedTuple):
    """A block that is open, and the line that has begun it."""

    kind: str
    line: Line


class _Mode(Enum):
    HEAD = auto()
    """At the beginning of a line whose kind is not certain."""
    SENTENCES = auto()
    QUOTE = auto()
    """Behind the mark of a quote's line."""
    REST = auto()
    """In a line in which nothing is looked for: of code, a heading, a table."""


_BLOCKS = {LineKind.HEADING: HEADING, LineKind.FENCE: CODE, LineKind.QUOTE: QUOTE, LineKind.TABLE: TABLE}
_MODES = {
    LineKind.TEXT: _Mode.SENTENCES,
    LineKind.ITEM: _Mode.SENTENCES,
    LineKind.QUOTE: _Mode.QUOTE,
    LineKind.HEADING: _Mode.REST,
    LineKind.ROW: _Mode.REST,
}
"""How the line goes on behind its head; that of others has its end."""


class Segmenter:
    """The marks of one text: `push` it piece by piece, then `flush` once."""

    def __init__(self) -> None:
        self._text = ""
        """What has come and is not taken yet, from the offset `_base`."""
        self._base = 0
        self._at = 0
        """How much of `_text` has been taken."""
        self._ink = 0
        """Offset behind the last character taken that is not white space."""
        self._open: list[_Block] = []
        self._sentences = Sentences()
        self._marks: list[Mark] = []
        self._mode = _Mode.HEAD

    def push(self, text: str) -> list[Mark]:
        """The marks that have become certain with this text."""
        self._text += text
        self._run()
        self._text, self._base, self._at = self._text[self._at :], self._base + self._at, 0
        return self._taken()

    def flush(self) -> list[Mark]:
        """The remaining marks: the text has ended, and with it everything that is open."""
        self._run(is_all=True)
        self._close_to(0)
        return self._taken()

    def _taken(self) -> list[Mark]:
        marks, self._marks = self._marks, []
        return marks

    def _run(self, *, is_all: bool = False) -> None:
        """Take as much as is certain."""
        while self._at < len(self._text):
            match self._mode:
                case _Mode.HEAD:
                    if not self._take_head(is_all=is_all):
                        return
                case _Mode.SENTENCES:
                    self._take_sentences()
                case _Mode.QUOTE:
                    self._take_quote_marks()
                case _Mode.REST:
                    if self._take_line().endswith("\n"):
                        self._end_line()

    # Taking text

    def _take_head(self, *, is_all: bool) -> bool:
        """Take the head of a line, if it is certain what it is."""
        code, text = self._open[-1] if self._is_in(CODE) else None, self._text[self._at : self._at + HEAD_MAX]
        if code is None:
            line = read_head(text, in_table=self._is_in(TABLE), is_all=is_all)
        else:
            line = read_code_head(text, code.line.fence, is_all=is_all)
        if line is None:
            return False
        if code is None:
            self._line(line, self._base + self._at + line.start)
        elif line.kind is LineKind.FENCE:
            self._take(line.n_head)
            self._close_to(len(self._open) - 1)
        else:
            self._mode = _Mode.REST
        return True

    def _take(self, n: int) -> str:
        taken = self._text[self._at : self._at + n]
        n_inked = len(taken.rstrip())
        if n_inked:
            self._ink = self._base + self._at + n_inked
        self._at += n
        return taken

    def _take_line(self) -> str:
        """As much of the line as there is, with its end."""
        newline = self._text.find("\n", self._at)
        return self._take((len(self._text) if newline < 0 else newline + 1) - self._at)

    def _take_sentences(self) -> None:
        offset = self._base + self._at
        taken = self._take_line()
        for begins, at in self._sentences.feed(taken, offset):
            self._marks.append(Mark(SENTENCE, BEGIN if begins else END, at))
        if taken.endswith("\n"):
            self._end_line()

    def _take_quote_marks(self) -> None:
        char = self._text[self._at]
        if char == "\n":
            self._end_sentence()
            self._take(1)
            self._end_line()
        elif char in " \t>":
            self._take(1)
        else:
            self._mode = _Mode.SENTENCES

    def _end_line(self) -> None:
        if self._is_in(HEADING):
            self._close_to(len(self._open) - 1)
        self._mode = _Mode.HEAD

    # Lines

    def _line(self, line: Line, at: int) -> None:
        """A line has begun whose kind is certain: close what it ends, open what it begins, take its head."""
        kind, block = line.kind, _BLOCKS.get(line.kind)
        if kind is LineKind.ITEM and self._is_in(PARAGRAPH) and line.ordered and line.number != 1:
            kind = LineKind.TEXT  # "... in\n1986. Then ..." is no list: only 1 begins one in the middle of a paragraph
        if kind is LineKind.TEXT:
            self._text_line(line, at)
        elif kind is LineKind.ITEM:
            self._item(line, at)
        elif kind is LineKind.BLANK:  # ends what is a run of lines; items may go on behind it
            self._close_to(len(self._open) - any(map(self._is_in, (PARAGRAPH, QUOTE, TABLE))))
        elif kind is LineKind.RULE:
            self._close_to(0)
        elif block and not (block == QUOTE and self._is_in(QUOTE)):
            self._close_to(0 if block == HEADING else self._depth_at(line.indent))
            self._begin(block, line, Mark(block, BEGIN, at, level=line.level or None, language=line.language or None))
        if kind is not LineKind.TEXT:
            self._take(line.n_head)
        self._mode = _MODES.get(kind, _Mode.HEAD)

    def _text_line(self, line: Line, at: int) -> None:
        if self._is_in(PARAGRAPH):
            return
        depth = self._depth_at(line.indent)
        if self._is_in(ITEM) and depth == len(self._open):
            return
        self._close_to(depth)
        if not self._open:
            self._begin(PARAGRAPH, line, Mark(PARAGRAPH, BEGIN, at))

    def _item(self, line: Line, at: int) -> None:
        depth = 0
        for i, block in enumerate(self._open):
            if block.kind != LIST:
                continue
            if line.indent > block.line.indent + 1:
                depth = i + 2  # within that list's item
            elif line.indent >= block.line.indent or i == 0:
                depth = i + (block.line.ordered == line.ordered)
                break
        self._close_to(depth)
        if not self._is_in(LIST):
            level = 1 + sum(block.kind == LIST for block in self._open)
            self._begin(LIST, line, Mark(LIST, BEGIN, at, level=level, ordered=line.ordered))
        self._begin(ITEM, line, Mark(ITEM, BEGIN, at, ordered=line.ordered))

    # What is open

    def _is_in(self, kind: str) -> bool:
        """Whether the innermost open block is one of these."""
        return bool(self._open) and self._open[-1].kind == kind

    def _depth_at(self, indent: int) -> int:
        """How many of the open blocks hold one that is indented this far: the lists it is deeper than, with their items."""
        depth = 0
        for i, block in enumerate(self._open):
            if block.kind == LIST and indent > block.line.indent:
                depth = i + 2
        return depth

    def _begin(self, kind: str, line: Line, mark: Mark) -> None:
        self._open.append(_Block(kind, line))
        self._marks.append(mark)

    def _close_to(self, depth: int) -> None:
        """End the sentence, and the blocks beyond the first `depth`."""
        self._end_sentence()
        while len(self._open) > depth:
            self._marks.append(Mark(self._open.pop().kind, END, self._ink))

    def _end_sentence(self) -> None:
        if self._sentences.is_open:
            self._marks.append(Mark(SENTENCE, END, self._sentences.close()))
