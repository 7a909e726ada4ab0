"""Reads an answer by its response template, piece by piece: reasoning, calls of functions, and text.

Held back is at most a mark that is not whole, the white space before it, and a call until its name is certain; all work is
linear in the answer. White space is dropped next to marks and nowhere else.

A call that is malformed before its name is told comes as text, with its marks; later, the rest of it is part of its arguments,
as it came: what was sent cannot be taken back."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from poise.gateway.text.answers import AnswerParser, EntryKind, Pieces
from poise.gateway.text.reading.calls import CallReader
from poise.gateway.text.reading.source import Ended, Malformed, Source, Steps
from poise.gateway.text.reading.templates import Finder, Template

TEXT, REASONING = EntryKind.TEXT, EntryKind.REASONING
SPACE_MAX = 64
"""White space that is held back because a mark may follow."""
BARE = "{"


class ResponseParser(AnswerParser):
    """For one answer."""

    def __init__(self, template: Template, tools: Mapping[str, Mapping[str, Any]] | None = None, *, inside: bool = False) -> None:
        """`tools`: the schemas of their arguments, by name; without any, nothing is a call. `inside`: the prompt has opened the
        reasoning."""
        self.marks = template.marks
        self._template = template
        self._source = Source(template.names)
        self._calls = CallReader(self._source, template.calls, tools) if template.calls and tools else None
        self._begun = False
        """What was said is not only reasoning and calls."""
        self._kind = TEXT
        self._steps = self._read(inside=inside)
        next(self._steps)

    def push(self, text: str) -> Pieces:
        was = self._kind
        if text:
            self._source.add(text)
            next(self._steps)
        pieces = self._source.pieces()
        if was is REASONING and (not pieces or pieces[0][0] is not REASONING):
            return [(REASONING, ""), *pieces]
        return pieces

    def flush(self) -> Pieces:
        self._source.add("", is_all=True)
        next(self._steps, None)
        return self._source.pieces()

    def _read(self, *, inside: bool) -> Steps[None]:
        source, template = self._source, self._template
        try:
            if inside:
                yield from self._reason()
            while True:
                mark = yield from (self._say() if self._begun else self._begin())
                if mark in template.reasoning_opens:
                    yield from self._reason()
                elif mark and mark not in template.dropped:
                    yield from self._call(mark)
                elif mark:
                    source.forget()
                    yield from source.peek()
        except Ended:
            source.take(len(source.text))
            source.release()

    def _begin(self) -> Steps[str]:
        """The mark with which the answer begins, which is read; "" where it begins with text."""
        source, template = self._source, self._template
        source.hold()
        bare = self._calls is not None and self._calls.is_bare
        for _ in range(SPACE_MAX + 1):
            if source.at == len(source.text):
                yield from source.more()
            if source.at == len(source.text) or not source.text[source.at].isspace():
                break
            source.take(source.at + 1)
        else:
            self._begun = True
        heads = template.heads if self._calls is not None else ()
        marks = (*template.reasoning_opens, *template.dropped, *heads, *([BARE] if bare else []))
        mark = "" if self._begun else (yield from source.next_of(*marks))
        if not mark:
            self._begun = True
            source.release()
        elif mark != BARE:
            source.take(source.at + len(mark))
        return mark

    def _say(self) -> Steps[str]:
        """Text up to a mark, which is returned."""
        finder = self._template.finders[self._calls is not None]
        space, mark = yield from self._source.until(finder, partial(self._source.emit, TEXT), SPACE_MAX)
        self._source.hold(space + mark)
        return mark

    def _reason(self) -> Steps[None]:
        """Reasoning, up to its end."""
        source = self._source
        source.forget()
        self._kind = REASONING
        try:
            yield from source.peek()
            yield from source.until(self._template.closing, partial(source.emit, REASONING), SPACE_MAX)
        finally:
            self._kind = TEXT
        yield from source.peek()

    def _call(self, mark: str) -> Steps[None]:
        """One or several calls that have this mark, which is read. What is malformed is text, or arguments."""
        source, calls = self._source, self._calls
        assert calls is not None
        closes = self._template.calls.closes if self._template.calls else ()
        try:
            yield from calls.read(self._template.heads.get(mark, ()))
        except Malformed:
            if source.release():
                self._begun = True
                return
            if closes:
                yield from source.until(Finder(closes), partial(source.emit, EntryKind.CALL_ARGUMENTS), SPACE_MAX)
        source.forget()
        while True:
            yield from source.peek()
            close = yield from source.next_of(*closes, "}")
            if not close:
                return
            source.take(source.at + len(close))
