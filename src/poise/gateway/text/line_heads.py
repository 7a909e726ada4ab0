"""What kind of line begins here, decided as early as it is certain: the block level of the Markdown that models write.

Each reader is a generator that is sent the characters of a line one by one, `""` where the text ends, and returns the `Line` as
soon as no further character could change it. A head is mostly a character or two. A fence is certain at the end of its line,
because "```a``` b" is a line of text; a table with the row of dashes below its first row."""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, auto

LANGUAGE_MAX = 64
_NUMBER_DIGITS_MAX = 9
_TAB_COLUMNS = 4
_INDENT_MAX = 3
"""A line of hashes that is indented further is no heading."""
_BLANKS = (" ", "\t", "\r")
_ENDS = ("\n", "")


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


Reader = Generator[None, str, Line]


def read_head(*, in_table: bool) -> Reader:
    """The head of a line outside of code."""
    indent, start, char = yield from _indentation()
    text = Line(LineKind.TEXT, indent, start)
    match char:
        case "\n" | "":
            return Line(LineKind.BLANK, indent, start, start + len(char))
        case "#" if indent <= _INDENT_MAX:
            return (yield from _heading(text))
        case "`" | "~":
            return (yield from _fence(text, char))
        case ">":
            return Line(LineKind.QUOTE, indent, start, start + 1)
        case "|" if in_table:
            return Line(LineKind.ROW, indent, start, start + 1)
        case "|":
            return (yield from _table(text))
        case "-" | "*" | "+" | "_":
            return (yield from _bullet(text, char))
        case _ if "0" <= char <= "9":
            return (yield from _number(text, char))
    return text


def read_code_head(fence: str) -> Reader:
    """The head of a line in a code block: the fence that closes it, or text, which is code."""
    indent, start, char = yield from _indentation()
    count = 0
    while char == fence[0]:
        count += 1
        char = yield
    n = start + count
    while char in _BLANKS:
        n += 1
        char = yield
    if char in _ENDS and count >= len(fence):
        return Line(LineKind.FENCE, indent, start, n + len(char))
    return Line(LineKind.TEXT, indent, start)


def _indentation() -> Generator[None, str, tuple[int, int, str]]:
    """Columns and characters of white space, and the character behind them."""
    indent = start = 0
    while (char := (yield)).isspace() and char != "\n":
        start += 1
        indent += _TAB_COLUMNS - indent % _TAB_COLUMNS if char == "\t" else 1
    return indent, start, char


def _heading(text: Line) -> Reader:
    level = 1
    while (char := (yield)) == "#":
        level += 1
    if level > 6 or char not in _BLANKS:
        return text
    return Line(LineKind.HEADING, text.indent, text.start, text.start + level, level=level)


def _fence(text: Line, mark: str) -> Reader:
    count = 1
    while (char := (yield)) == mark:
        count += 1
    if count < 3:
        return text
    info = []
    while char not in _ENDS:
        if char == mark == "`":
            return text
        info.append(char)
        char = yield
    n_head = text.start + count + len(info) + len(char)
    language = "".join(info).strip().partition(" ")[0][:LANGUAGE_MAX]
    return Line(LineKind.FENCE, text.indent, text.start, n_head, fence=mark * count, language=language)


def _table(text: Line) -> Reader:
    n_head = text.start + 1
    while (char := (yield)) != "\n":
        if char == "":
            return text
        n_head += 1
    n_head += 1
    seen = set()
    while (char := (yield)) not in _ENDS:
        if char not in "|:- \t\r":
            return text
        seen.add(char)
        n_head += 1
    if not {"|", "-"} <= seen:
        return text
    return Line(LineKind.TABLE, text.indent, text.start, n_head + len(char))


def _bullet(text: Line, mark: str) -> Reader:
    """An item, or a rule: three marks and nothing else, so "- - " may still become one."""
    count = n = 1
    char = yield
    is_item = mark != "_" and char in _BLANKS
    other = Line(LineKind.ITEM, text.indent, text.start, text.start + 2) if is_item else text
    while char not in _ENDS:
        if char == mark != "+":
            count += 1
        elif char not in _BLANKS:
            return other
        n += 1
        char = yield
    if count < 3:
        return other
    return Line(LineKind.RULE, text.indent, text.start, text.start + n + len(char))


def _number(text: Line, first: str) -> Reader:
    digits = first
    while "0" <= (char := (yield)) <= "9":
        digits += char
        if len(digits) > _NUMBER_DIGITS_MAX:
            return text
    if char not in (".", ")") or (yield) not in _BLANKS:
        return text
    n_head = text.start + len(digits) + 2
    return Line(LineKind.ITEM, text.indent, text.start, n_head, ordered=True, number=int(digits))
