"""What kind of line begins here, decided as early as it is certain: the block level of the Markdown that models write.

A head is mostly a character or two. A fence is certain at the end of its line, because "```a``` b" is a line of text; a table
with the row of dashes below its first row. While more has to come, there is no `Line`; what is decided no further character
changes."""

import re
from dataclasses import dataclass, replace
from enum import Enum, auto

LANGUAGE_MAX = 64
HEAD_MAX = 2048
"""What is not certain by then is text: a line that stays undecided is read again with each of its pieces."""
_TAB_COLUMNS = 4
_INDENT_MAX = 3
"""A line of hashes that is indented further is no heading."""
_BLANKS, _ENDS = (" ", "\t", "\r"), ("\n", "")
_SPACE, _HASHES = re.compile(r"[^\S\n]*"), re.compile(r"#+")
_FENCE = re.compile(r"(`{3,})([^`\n]*)|(~{3,})([^\n]*)|`+|~+")
_TABLE = re.compile(r"[^\n]*(?:\n([|:\- \t\r]*))?")
_BULLETS = re.compile(r"\+[ \t\r]*|[- \t\r]+|[* \t\r]+|[_ \t\r]+")
_NUMBER, _NUMBER_BEGUN = re.compile(r"([0-9]{1,9})[.)][ \t\r]"), re.compile(r"[0-9]{1,9}[.)]?")


class LineKind(Enum):
    BLANK = auto()
    TEXT = auto()
    HEADING = auto()
    ITEM = auto()
    FENCE = auto()
    QUOTE = auto()
    TABLE = auto()
    """Its first row and the row of dashes."""
    ROW = auto()
    """A further row."""
    RULE = auto()


@dataclass(frozen=True, slots=True)
class Line:
    """A line whose kind is certain. Of its characters, `start` are white space and `n_head` the head; the rest is content."""

    kind: LineKind
    indent: int
    """Columns of white space."""
    start: int
    n_head: int = 0
    level: int = 0
    ordered: bool = False
    number: int = 0
    fence: str = ""
    language: str = ""


def read_head(text: str, *, in_table: bool, is_all: bool) -> Line | None:
    """The head of the line that a text begins with, outside of code; None: more of it has to come. `is_all`: nothing will.
    `text`: at most HEAD_MAX characters."""
    plain, unsure, is_all = _begun(text, is_all)
    begin = plain.start
    char = text[begin : begin + 1]
    if not (char or is_all):
        return unsure
    if char in _ENDS:
        return replace(plain, kind=LineKind.BLANK, n_head=begin + len(char))
    if char == ">" or (char == "|" and in_table):
        return replace(plain, kind=LineKind.QUOTE if char == ">" else LineKind.ROW, n_head=begin + 1)
    if "0" <= char <= "9":
        if (found := _NUMBER.match(text, begin)) is not None:
            return replace(plain, kind=LineKind.ITEM, n_head=found.end(), ordered=True, number=int(found[1]))
        return unsure if _NUMBER_BEGUN.fullmatch(text, begin) and not is_all else plain
    patterns = {"#": _HASHES, "`": _FENCE, "~": _FENCE, "|": _TABLE, "-": _BULLETS, "*": _BULLETS, "+": _BULLETS, "_": _BULLETS}
    if char not in patterns or (char == "#" and plain.indent > _INDENT_MAX):
        return plain
    found = patterns[char].match(text, begin)
    assert found is not None, "each pattern matches its first character"
    if found.end() == len(text) and not is_all:
        return unsure
    behind = text[found.end() : found.end() + 1]
    marked = replace(plain, n_head=found.end() + len(behind))
    match char:
        case "#":
            level = len(found[0])
            is_heading = level <= 6 and behind in _BLANKS
            return replace(plain, kind=LineKind.HEADING, n_head=found.end(), level=level) if is_heading else plain
        case "`" | "~":
            fence, info = found[1] or found[3], found[2] or found[4] or ""
            language = info.strip().partition(" ")[0][:LANGUAGE_MAX]
            is_fence = fence and behind in _ENDS
            return replace(marked, kind=LineKind.FENCE, fence=fence, language=language) if is_fence else plain
        case "|":
            is_table = behind in _ENDS and {"|", "-"} <= set(found[1] or "")
            return replace(marked, kind=LineKind.TABLE) if is_table else plain
    # A bullet, or a rule: three marks and nothing else, so "- - " may still become one.
    if behind in _ENDS and char != "+" and found[0].count(char) >= 3:
        return replace(marked, kind=LineKind.RULE)
    is_item = char != "_" and text[begin + 1 : begin + 2] in _BLANKS
    return replace(plain, kind=LineKind.ITEM, n_head=begin + 2) if is_item else plain


def read_code_head(text: str, fence: str, *, is_all: bool) -> Line | None:
    """The same in a code block: the fence that closes it, or text, which is code."""
    plain, unsure, is_all = _begun(text, is_all)
    marks = re.compile(rf"(\{fence[0]}*)[ \t\r]*").match(text, plain.start)
    assert marks is not None, "it matches nothing as well"
    if marks.end() == len(text) and not is_all:
        return unsure
    behind = text[marks.end() : marks.end() + 1]
    if behind in _ENDS and len(marks[1]) >= len(fence):
        return replace(plain, kind=LineKind.FENCE, n_head=marks.end() + len(behind))
    return plain


def _begun(text: str, is_all: bool) -> tuple[Line, Line | None, bool]:
    """The line as it is unless its head says something else, what is known of it while that is not certain, and whether the
    text is all there is of it."""
    space = _SPACE.match(text)
    assert space is not None, "it matches nothing as well"
    indent = len(space[0].replace("\r", " ").expandtabs(_TAB_COLUMNS))
    plain = Line(LineKind.TEXT, indent, space.end())
    is_long = len(text) == HEAD_MAX
    return plain, plain if is_long else None, is_all and not is_long
