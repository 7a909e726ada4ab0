"""Segments: the marks are right, they nest, none is taken back, and none depends on how the text was cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.text.segments import BEGIN, END, KINDS, SENTENCE, Mark, Segmenter

# Beginnings of every kind of line, things that look alike, and text around them.
PARTS = (
    "# ", "#", "####### ", "## ", "- ", "-", "---", "* ", "**", "+ ", "1. ", "2. ", "7", "10) ", "```", "~~~", "`", "py", "> ",
    ">", "|", "|-|", "|a|b|\n|--|--|\n", "\n", "\n\n", "\n  ", "\n    ", "\t", " ", "  ", "_ ", "\u00a0", "\r\n", "\u2028",
    "Aa", "bb", "é", "日本", "😀", "。", ".", "...", "! ", "? ", ". ", ". B", '." C', "e.g. ", "Dr. ", "No. ", "3.14 ", ")",
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)
CUTS = st.lists(st.integers(0, 10_000), max_size=30)
INSIDE = {
    "list": {"item"},
    "item": {"list", "sentence", "code", "quote", "table"},
    "paragraph": {"sentence"},
    "quote": {"sentence"},
    "heading": set(),
    "code": set(),
    "table": set(),
    "sentence": set(),
    "": set(KINDS) - {"item", "sentence"},
}


def marks_of(text: str, cuts: list[int] | None = None) -> list[Mark]:
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts or []), len(text)]
    segmenter = Segmenter()
    marks = [mark for start, end in pairwise(edges) for mark in segmenter.push(text[start:end])]
    return marks + segmenter.flush()


def found(text: str, *kinds: str) -> list[str]:
    """The segments of these kinds, as they stand in the text."""
    begins: list[Mark] = []
    segments = []
    for mark in marks_of(text):
        if mark.event == BEGIN:
            begins.append(mark)
        else:
            segments.append((begins.pop(), mark.offset))
    segments.sort(key=lambda segment: segment[0].offset)
    return [text[begin.offset : end] for begin, end in segments if begin.kind in kinds]


def outline(text: str) -> str:
    """The segments as brackets: `list(item(sentence))`."""
    return "".join(f" {mark.kind}(" if mark.event == BEGIN else ")" for mark in marks_of(text)).replace("( ", "(").strip()


# What holds for every text


@given(TEXTS, CUTS)
def test_the_cuts_do_not_matter(text: str, cuts: list[int]) -> None:
    """Any pieces give the same marks as the whole."""
    assert marks_of(text, cuts) == marks_of(text)


@given(TEXTS)
def test_each_mark_comes_with_the_character_that_makes_it_certain(text: str) -> None:
    """After every beginning of the text, whole or letter by letter, the same marks are known; flushing there is safe."""
    by_letter, known = Segmenter(), []
    for n, letter in enumerate(text, start=1):
        known += by_letter.push(letter)
        at_once = Segmenter()
        assert at_once.push(text[:n]) == known
        assert is_balanced(known + at_once.flush())


@given(TEXTS)
def test_segments_nest_and_are_where_their_text_is(text: str) -> None:
    """Everything that begins ends, in order, with a letter at either side that is no white space."""
    open_marks: list[Mark] = []
    last = 0
    for mark in marks_of(text):
        assert last <= mark.offset <= len(text)
        last = mark.offset
        if mark.event == BEGIN:
            assert mark.kind in INSIDE[open_marks[-1].kind if open_marks else ""]
            assert not text[mark.offset].isspace()
            open_marks.append(mark)
        else:
            begin = open_marks.pop()
            assert (mark.event, mark.kind) == (END, begin.kind)
            assert begin.offset < mark.offset
            assert not text[mark.offset - 1].isspace()
    assert not open_marks


@given(TEXTS)
def test_no_text_is_left_out(text: str) -> None:
    """Behind the last blank line every letter belongs to something, unless the line is a rule."""
    covered = [False] * len(text)
    depth_marks: list[Mark] = []
    for mark in marks_of(text):
        if mark.event == BEGIN:
            depth_marks.append(mark)
        else:
            begin = depth_marks.pop()
            covered[begin.offset : mark.offset] = [True] * (mark.offset - begin.offset)
    outside = "".join(letter for letter, is_covered in zip(text, covered, strict=True) if not is_covered)
    assert set(outside.replace(" ", "")) <= set("-*_\n\t\r\u00a0\u2028")


def is_balanced(marks: list[Mark]) -> bool:
    kinds: list[str] = []
    for mark in marks:
        if mark.event == BEGIN:
            kinds.append(mark.kind)
        elif not kinds or kinds.pop() != mark.kind:
            return False
    return not kinds


# Blocks


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \n\n", ""),
        ("# A\ntext", "heading() paragraph(sentence())"),
        ("#tag\n####### seven", "paragraph(sentence())"),
        ("a\n\nb", "paragraph(sentence()) paragraph(sentence())"),
        ("- a\n- b", "list(item(sentence()) item(sentence()))"),
        ("- a\n\n- b", "list(item(sentence()) item(sentence()))"),
        ("- a\n  - b\n- c", "list(item(sentence() list(item(sentence()))) item(sentence()))"),
        ("- a\n1. b", "list(item(sentence())) list(item(sentence()))"),
        ("- a\n  b\n\n  c", "list(item(sentence() sentence()))"),
        ("- a\nb", "list(item(sentence())) paragraph(sentence())"),
        ("- a\n\n  > b", "list(item(sentence() quote(sentence())))"),
        ("1. a\n   ```sh\n   b\n   ```\n2. c", "list(item(sentence() code()) item(sentence()))"),
        ("1. a\n```\nb\n```\n2. c", "list(item(sentence())) code() list(item(sentence()))"),
        ("- ", "list(item())"),
        ("-", "paragraph(sentence())"),
        ("- - -\n***\n___", ""),
        ("- - a", "list(item(sentence()))"),
        ("so\n1. a", "paragraph(sentence()) list(item(sentence()))"),
        ("so\n2. a", "paragraph(sentence())"),
        ("1234567890. a", "paragraph(sentence())"),
        ("> a\n> b\n\n> c", "quote(sentence()) quote(sentence())"),
        ("> a\n>\n> b", "quote(sentence() sentence())"),
        ("| a |\n|---|\n| b |\nc", "table() paragraph(sentence())"),
        ("|x| is it\n|y| too", "paragraph(sentence())"),
        ("```js\n# no\n\n- no. No\n```\n# yes", "code() heading()"),
        ("~~~\n```\n~~~", "code()"),
        ("````\n```\n````", "code()"),
        ("```\nopen. Open", "code()"),
        ("```a``` b. C", "paragraph(sentence() sentence())"),
        ("````", "code()"),
        ("``", "paragraph(sentence())"),
    ],
)
def test_blocks(text: str, expected: str) -> None:
    """The kinds, and what is in what."""
    assert outline(text) == expected


def test_what_is_known_of_a_segment() -> None:
    """Levels, numbering and languages come with the beginning, and only where there are any."""
    text = "### T\n\n1. a\n   - b\n\n```python title=x\nc\n```\n\n```\nd"
    known = [(m.kind, m.level, m.ordered, m.language) for m in marks_of(text) if m.event == BEGIN and m.kind != SENTENCE]
    assert known == [
        ("heading", 3, None, None),
        ("list", 1, True, None),
        ("item", None, True, None),
        ("list", 2, False, None),
        ("item", None, False, None),
        ("code", None, None, "python"),
        ("code", None, None, None),
    ]
    assert all((m.level, m.ordered, m.language) == (None, None, None) for m in marks_of(text) if m.event == END)


def test_segments_are_cut_out_exactly() -> None:
    """Marks of the format belong to a segment, white space around it does not; offsets count characters, not bytes."""
    text = "😀 é\n\n  # Ti tle  \n\n* a  \n\n```\nx\n```  \nz"
    assert found(text, "paragraph", "heading", "item", "code") == ["😀 é", "# Ti tle", "* a", "```\nx\n```", "z"]


def test_a_mark_comes_early() -> None:
    """Structure is known with the first characters of it, not at its end."""
    segmenter = Segmenter()
    arrivals = {}
    text = "# T\n- a\n\n```py\nb\n```\n|c|\n|-|\n"
    for n, letter in enumerate(text, start=1):
        for mark in segmenter.push(letter):
            arrivals[mark.kind, mark.event] = text[:n].rsplit("\n", 1)[-1] or "\n"
    assert arrivals["heading", BEGIN] == "# "
    assert arrivals["heading", END] == "\n"
    assert arrivals["list", BEGIN] == arrivals["item", BEGIN] == "- a"
    assert arrivals["list", END] == arrivals["code", BEGIN] == "\n"
    assert arrivals["code", END] == arrivals["table", BEGIN] == "\n"


# Sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["One.", "Two!", "Three?", "Four"],
        ["It costs 3.14 dollars.", "Version v1.2.3 is at example.com today.", "Yes."],
        ["Dr. Smith met Mrs. Jones, e.g. at noon.", "They left at 5 p.m. sharp.", "See Fig. 3 and J. R. R. Tolkien."],
        ["Is it No. 5?", "No.", "It is the 6th."],
        ['He said "Go."', "Then (quietly.)", "**Bold.**", "Plain."],
        ["Wait... what?", "No...", "Yes?!", "Good."],
        ['"What?" he asked.', "Yahoo! is a name."],
        ["Call `a. B` or `x.y()`.", "Done."],
        ["2. is a number.", "Born in 1986.", "Later."],
        ["No end.Here it goes on.", "End."],
        ["We like cats, dogs, etc. and birds.", "Über alles.", "«Bien.»", "Oui."],
    ],
)
def test_sentences(sentences: list[str]) -> None:
    """They end where a reader would end them; stops that are part of a word, a number or a name do not end one."""
    assert found("Oh, " + " ".join(sentences), SENTENCE) == ["Oh, " + sentences[0], *sentences[1:]]


def test_sentences_over_lines_and_without_spaces() -> None:
    """A line break is white space like any other; wide stops need none behind them."""
    assert found("One\ntwo.\nThree `a.\nBb. Cc", SENTENCE) == ["One\ntwo.", "Three `a.\nBb.", "Cc"]
    assert found("今日は。元気？「はい。」そう", SENTENCE) == ["今日は。", "元気？", "「はい。」", "そう"]


def test_long_texts_take_linear_time() -> None:
    """The slowest kinds of text for reading ahead: a line that stays undecided, and a text that comes whole."""
    for text in ("| " + "a" * 50_000, " " * 50_000, "-" * 50_000, "#" * 50_000, "a\n" * 25_000, "`" * 50_000):
        segmenter = Segmenter()
        for start in range(0, len(text), 5):
            segmenter.push(text[start : start + 5])
        segmenter.flush()
        assert len(marks_of(text)) < 10
