"""Response templates: how a model writes reasoning and calls of functions, as data; and which one a model's answers are read by.

Version 1 of the form that Hugging Face's `response_template` has, as far as it can be followed in linear time: a field has `open`
and `close` (texts; several are alternatives) or `open_pattern` and `close_pattern`, and says what its `content` is. Of regular
expressions there are texts, `\\s*`, `.*?`, and `(?P<name>...)`, which is the name of the function, whatever its class of
characters. Further keys are ours: `bare` (a call may stand where the answer begins, without a mark), and for tagged arguments
`parameter` (what is before a key, behind it, before its value and behind that) or `quote`.

A mark that is a control token of the model has no text. It is given to a parser as one character that no text has, a lone
surrogate, so that a text that spells it is none.

A model's own is chosen by marks in its chat template, by what that renders, or it is the generic one."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

NAME, ANYTHING, SPACE = "\ue000name\ue001", "\ue000anything\ue001", "\ue000space\ue001"
"""Parts of a mark beside its texts."""
CONTENTS = ("json", "xml-inline", "kv-lines", "python-call-list", "kv-braces", "generic")
"""What the inside of a call may be; `generic` is the form for models without one of their own."""
_SPELLED = {
    NAME: re.compile(r"\(\?P<name>(?:\\w|\.|\[[^\]]+\])[+*]\??\)"),
    ANYTHING: re.compile(r"(?<!\\)\.[*+]\??"),
    SPACE: re.compile(r"\\s[*+]?"),
}
_SPECIAL, _PART = re.compile(r"(?<!\\)[()|?*+.\[\]{}^$]|\\\w"), re.compile("(\ue000[a-z]+\ue001)")
_GROUP = re.compile(r"\(\?:([^()]*)\)(\??)")
_FIRST_MARK = 0xD800


@dataclass(frozen=True)
class Calls:
    """How calls are written. `opens`: marks in parts, the first of which is a text."""

    content: str
    opens: tuple[tuple[str, ...], ...] = ()
    closes: tuple[str, ...] = ()
    bare: bool = False
    parameter: tuple[str, str, str, str] = ("<parameter=", ">", "", "</parameter>")
    quote: str = '<|"|>'


@dataclass(frozen=True)
class Template:
    """One model's. `marks`: its tokens without a text that a parser has to see, and the character of each."""

    reasoning_opens: tuple[str, ...] = ()
    reasoning_closes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    """Marks around what is said."""
    calls: Calls | None = None
    marks: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    """What the characters of marks stand for."""

    @cached_property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """The rest of each mark that opens a call, by its first text."""
        return {parts[0]: parts[1:] for parts in self.calls.opens} if self.calls is not None else {}

    @cached_property
    def finders(self) -> "dict[bool, Finder]":
        """Of what ends a stretch of text, by whether there are functions. In text reasoning begins at a control token only."""
        thoughts = tuple(mark for mark in self.reasoning_opens if mark[0] in self.names)
        return {calls: Finder((*self.dropped, *thoughts, *(self.heads if calls else ()))) for calls in (False, True)}

    @cached_property
    def closing(self) -> "Finder":
        """Of what ends reasoning."""
        return Finder(self.reasoning_closes)


class Finder:
    """Finds the first of some texts in one that comes in pieces."""

    def __init__(self, texts: Iterable[str]) -> None:
        longest_first = sorted(dict.fromkeys(texts), key=len, reverse=True)
        self._any = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._first = re.compile("|".join(re.escape(text[0]) for text in longest_first) or r"(?!)")
        self._beginnings = {text[:n] for text in longest_first for n in range(1, len(text))}
        self._longest = len(longest_first[0]) if longest_first else 0

    def find(self, text: str, at: int, *, is_all: bool) -> tuple[int, int]:
        """Where one begins and ends; or twice where one may begin that is not whole yet, at most the end of the text."""
        found = self._any.search(text, at)
        if not is_all:
            near = max(at, len(text) - self._longest + 1)
            for first in self._first.finditer(text, near if found is None else max(near, found.start())):
                if (found is None or first.start() == found.start()) and text[first.start() :] in self._beginnings:
                    return first.start(), first.start()
        return found.span() if found is not None else (len(text), len(text))


def read_template(source: Mapping[str, Any], control: Mapping[str, int] | None = None) -> Template:
    """A template of version 1. `control`: the control tokens of the model, by name. Raises ValueError, in one line."""
    fields = source.get("fields")
    if source.get("version", 1) != 1 or not isinstance(fields, dict) or set(map(type, fields.values())) - {dict}:
        raise ValueError("it is no template of version 1, with 'fields' that are objects")
    if unknown := set(fields) - {"reasoning_content", "thinking", "content", "tool_calls"}:
        raise ValueError(f"field '{min(unknown)}' is not known; there are reasoning_content, content and tool_calls")
    marks = _Marks(control or {})
    thoughts = fields.get("reasoning_content") or fields.get("thinking") or {}
    content, calls = fields.get("content", {}), fields.get("tool_calls")
    return Template(
        reasoning_opens=marks.texts(thoughts, "open"),
        reasoning_closes=marks.texts(thoughts, "close"),
        dropped=marks.texts(content, "open") + marks.texts(content, "close"),
        calls=_read_calls(calls, marks) if calls else None,
        marks=marks.by_id,
        names={char: name for name, char in marks.chars.items()},
    )


def _read_calls(source: Mapping[str, Any], marks: "_Marks") -> Calls:
    content, opens = source.get("content", "json"), marks.parts(source, "open")
    if content not in CONTENTS:
        raise ValueError(f"tool_calls: content is {content!r}, but it may be {', '.join(CONTENTS)}")
    if not opens and not source.get("bare"):
        raise ValueError("tool_calls: it has neither 'open' nor 'open_pattern'")
    parameter = tuple(marks.marked(str(text)) for text in source.get("parameter", Calls.parameter))
    if len(parameter) != 4:
        raise ValueError("tool_calls: 'parameter' is four texts: before a key, behind it, before its value, behind that")
    closes, quote = marks.texts(source, "close"), marks.marked(str(source.get("quote", Calls.quote)))
    return Calls(content, opens, closes, bool(source.get("bare")), parameter, quote)


class _Marks:
    """Exchanges the names of control tokens for their characters."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self._control = control
        names = sorted(filter(None, control), key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.chars: dict[str, str] = {}
        self.by_id: dict[int, str] = {}

    def marked(self, text: str) -> str:
        return self._names.sub(self._char, text)

    def _char(self, found: re.Match[str]) -> str:
        char = self.chars.setdefault(found[0], chr(_FIRST_MARK + len(self.chars)))
        self.by_id[self._control[found[0]]] = char
        return char

    def parts(self, source: Mapping[str, Any], what: str) -> tuple[tuple[str, ...], ...]:
        """The alternatives of a mark, each in parts."""
        texts = [(self.marked(text),) for text in _listed(source, what)]
        patterns = [one for pattern in _listed(source, f"{what}_pattern") for one in _alternatives(pattern)]
        return (*texts, *map(self._pattern, patterns))

    def texts(self, source: Mapping[str, Any], what: str) -> tuple[str, ...]:
        """Those of a mark that is nothing but text, with white space around it at most, which is never shown anyway."""
        found = [[part for part in parts if part != SPACE] for parts in self.parts(source, what)]
        if any(len(parts) != 1 for parts in found):
            raise ValueError(f"'{what}_pattern' is more than a text")
        return tuple(parts[0] for parts in found)

    def _pattern(self, pattern: str) -> tuple[str, ...]:
        spelled = pattern
        for part, spelling in _SPELLED.items():
            spelled = spelling.sub(part, spelled)
        if _SPECIAL.search(spelled):
            raise ValueError(f"pattern {pattern!r} has more than texts, \\s*, .*?, (?:a|b) and (?P<name>...)")
        parts = [re.sub(r"\\(.)", r"\1", part) for part in _PART.split(spelled) if part]
        parts = parts[parts[:1] == [SPACE] :]
        if not parts or _PART.match(parts[0]):
            raise ValueError(f"pattern {pattern!r} does not begin with a text")
        return tuple(map(self.marked, parts))


def _alternatives(pattern: str) -> list[str]:
    """A pattern without groups, once for each choice of their alternatives."""
    found = _GROUP.search(pattern)
    if found is None:
        return [pattern.replace("\\n", "\n")]
    choices = [*re.split(r"(?<!\\)\|", found[1]), *([""] if found[2] else [])]
    ends = pattern[: found.start()], pattern[found.end() :]
    return [one for choice in choices for one in _alternatives(choice.join(ends))]


def _listed(source: Mapping[str, Any], name: str) -> list[str]:
    value = source.get(name, [])
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"'{name}' is {value!r}, but it has to be a text or a list of texts")
    return texts


_FAMILIES = tomllib.loads(Path(__file__).with_name("families.toml").read_text("utf-8"))
GENERIC = {"content": "generic", "bare": True}
"""For models whose template knows no functions: `{"tool_calls": [...]}` or `{"content": "..."}`."""


def choose(chat_template: str, rendered: Mapping[str, Any], control: Mapping[str, int], *, knows_tools: bool = True) -> Template:
    """`rendered`: fields that the chat template's renderings show, where no family is known. `control`: see `read_template`.
    `knows_tools`: the chat template tells the model of functions; else it is told of them in words of our own."""
    fields: dict[str, Any] = {}
    for name, families in _FAMILIES.items():
        known = (family for family in families if all(text in chat_template for text in family["seen"]))
        found = next(known, None) or rendered.get(name)
        if found and (knows_tools or name != "tool_calls"):
            fields[name] = found
    fields.setdefault("tool_calls", GENERIC)
    fields["content"] = {"open": fields["tool_calls"].get("around", [])}
    try:
        return read_template({"fields": fields}, control)
    except ValueError:
        if not rendered:
            raise
        return choose(chat_template, {}, control, knows_tools=knows_tools)  # what was rendered has marks that cannot be read by
