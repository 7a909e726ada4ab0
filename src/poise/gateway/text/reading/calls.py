"""Reads calls of functions, in the ways in which families of models write them, and tells their arguments as JSON."""

import ast
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from poise.gateway.text.answers import EntryKind
from poise.gateway.text.reading.source import NAME_MAX, Malformed, Source, Steps, Tell
from poise.gateway.text.reading.templates import ANYTHING, NAME, SPACE, Calls, Finder

TEXT, ARGUMENTS = EntryKind.TEXT, EntryKind.CALL_ARGUMENTS
CAPTURED_MAX = 1 << 16
"""Characters of a value that is only read when it is whole."""
_NAMES, _ARGUMENTS = ("name", "function", "tool_name"), ("arguments", "parameters", "args", "input")
_PLAIN = re.compile(r"[\w\s+\-.:]*")
_LOOSE = re.compile(r"[^,{}\[\]\ud800-\udfff]*")
_QUOTED = re.compile(r'(?:[^"\\\ud800-\udfff]++|\\[^\ud800-\udfff])*+')
_ESCAPED = re.compile(
    r'(?:[^"\\\ud800-\udfff]++|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4})*+"
)
_ESCAPE_MAX = 12
_WORDS = {"True": True, "False": False, "None": None}
_TYPES: dict[type, tuple[str, ...]] = {
    bool: ("boolean",), int: ("integer", "number"), float: ("number",), str: ("string",), list: ("array",),
    dict: ("object",), type(None): ("null",),
}  # fmt: skip


class CallReader:
    """Reads what is behind the mark of a call. Raises Malformed for what is none."""

    def __init__(self, source: Source, calls: Calls, tools: Mapping[str, Mapping[str, Any]]) -> None:
        self._source = source
        self._calls = calls
        self._tools = tools
        self.is_bare = calls.bare
        self._tell = partial(source.emit, ARGUMENTS)

    def read(self, parts: tuple[str, ...]) -> Steps[None]:
        """`parts`: the rest of the mark."""
        source, content = self._source, self._calls.content
        name = ""
        for i, part in enumerate(parts):
            if part == SPACE:
                yield from source.peek()
            elif part == NAME and content == "json" and (yield from source.peek()) in "[{":
                break  # it is inside
            elif part == NAME:
                name = yield from source.name()
            elif i and parts[i - 1] == ANYTHING:
                yield from source.captured(Finder([part]), NAME_MAX)
            elif part != ANYTHING:
                yield from source.literal(part)
        if content == "json":
            yield from (self._arguments(name) if name else self._objects())
        else:
            readers = {"generic": self._generic, "xml-inline": self._tagged, "kv-braces": self._braces}
            yield from readers.get(content, self._whole)(name)

    def _objects(self) -> Steps[None]:
        """One call as an object, or a list of them."""
        source = self._source
        char = yield from source.peek()
        if char == "{":
            yield from self._object()
            return
        yield from source.literal("[")
        n = 0
        while (char := (yield from source.peek())) != "]":
            if char == "," and n:
                source.take(source.at + 1)
                yield from source.peek()
                source.hold()
            yield from self._object()
            n += 1
        if not n:
            raise Malformed
        source.take(source.at + 1)

    def _object(self) -> Steps[None]:
        """`{"name": ..., "arguments": ...}` in any order, with whatever else; also inside of a `function`."""
        source = self._source
        yield from source.literal("{")
        depth, name, early, is_told = 1, "", "", False
        while depth:
            char = yield from source.peek()
            if char in ",}":
                depth -= char == "}"
                source.take(source.at + 1)
                continue
            key = yield from self._string()
            yield from source.peek()
            yield from source.literal(":")
            char = yield from source.peek()
            if key in _NAMES and char == "{":
                source.take(source.at + 1)
                depth += 1
            elif key in _NAMES and not name:
                name = yield from self._string()
            elif key in _ARGUMENTS and name and not is_told:
                is_told = True
                yield from self._arguments(name)
            elif key in _ARGUMENTS and not (early or is_told):
                early = yield from self._value_text()
            else:
                yield from self._value(lambda _: None)
            if name and early and not is_told:
                is_told = True
                self._call(name)
                self._tell(early)
        if not name:
            raise Malformed
        if not is_told:
            self._call(name)
            self._tell("{}")

    def _call(self, name: str) -> None:
        """A call is certain. Where calls have no mark, only those of known functions are."""
        if self.is_bare and name not in self._tools:
            raise Malformed
        self._source.tell(name)

    def _arguments(self, name: str) -> Steps[None]:
        """The arguments of a call as they are, or as they are in a JSON string."""
        source = self._source
        char = yield from source.peek()
        if char == "{":
            self._call(name)
            yield from self._value(self._tell)
        elif char == '"':
            self._call(name)
            source.take(source.at + 1)
            yield from self._decoded(self._tell)
        else:
            yield from source.literal("null")
            self._call(name)
            self._tell("{}")

    def _value(self, tell: Tell) -> Steps[None]:
        """One JSON value as it is written."""
        source = self._source
        depth, quoted = 0, False
        while True:
            found = (_QUOTED if quoted else _PLAIN).match(source.text, source.at)
            assert found is not None
            end, char = found.end(), source.text[found.end() : found.end() + 1]
            if not char or (quoted and char == "\\"):
                tell(source.take(len(source.text) if source.is_ended else end))
                yield from source.more()
                continue
            if not quoted and not depth and char in ",}]":
                tell(source.take(end))
                return
            if char not in ('"' if quoted else '"{}[],'):
                tell(source.take(end))
                raise Malformed
            quoted ^= char == '"'
            depth += (char in "{[") - (char in "}]")
            tell(source.take(end + 1))
            if not depth and not quoted and char != ",":
                return

    def _value_text(self) -> Steps[str]:
        parts: list[str] = []
        yield from self._value(parts.append)
        return "".join(parts)

    def _string(self) -> Steps[str]:
        if (yield from self._source.peek()) != '"':
            raise Malformed
        raw = yield from self._value_text()
        try:
            return str(json.loads(raw, strict=False))
        except ValueError:
            raise Malformed from None

    def _decoded(self, tell: Tell) -> Steps[None]:
        """What a JSON string says, behind its opening quote."""
        source = self._source
        while True:
            found = _ESCAPED.match(source.text, source.at)
            assert found is not None
            tell(json.loads(f'"{source.take(found.end())}"', strict=False))
            left = source.text[source.at : source.at + _ESCAPE_MAX]
            if left.startswith('"'):
                source.take(source.at + 1)
                return
            if len(left) == _ESCAPE_MAX or (left and not left.startswith("\\")) or (left and source.is_ended):
                if not left.startswith("\\"):
                    raise Malformed
                tell(source.take(source.at + 1))  # an escape that is none
            else:
                yield from source.more()

    def _generic(self, _name: str) -> Steps[None]:
        """`{"tool_calls": [...]}` or `{"content": "..."}`."""
        source = self._source
        yield from source.literal("{")
        key = yield from self._string()
        yield from source.peek()
        yield from source.literal(":")
        char = yield from source.peek()
        if key == "tool_calls" and char == "[":
            yield from self._objects()
        elif key == "content" and char == '"':
            source.take(source.at + 1)
            source.forget()
            yield from self._decoded(partial(source.emit, TEXT))
        else:
            raise Malformed
        if (yield from source.peek()) == "}":
            source.take(source.at + 1)

    def _tagged(self, name: str) -> Steps[None]:
        """Each argument between tags. A text is told as it comes, anything else when it is whole."""
        source, (before, behind, opening, closing) = self._source, self._calls.parameter
        closes = Finder([f"\n{closing}", closing])
        n = 0
        while True:
            yield from source.peek()
            tag = yield from source.next_of(before, *self._calls.closes)
            if not tag:
                raise Malformed
            if not n:
                self._call(name)
            if tag != before:
                self._tell("}" if n else "{}")
                return
            source.take(source.at + len(tag))
            key = (yield from source.captured(Finder([behind]), NAME_MAX)).strip()
            if opening:
                yield from source.peek()
                yield from source.literal(opening)
            self._tell(f"{', ' if n else '{'}{json.dumps(key, ensure_ascii=False)}: ")
            n += 1
            if (yield from source.next_of("\n")):
                source.take(source.at + 1)
            types = self._types(name, key)
            if types == {"string"}:
                yield from self._text(closes)
            else:
                self._tell(_cast((yield from source.captured(closes)), types))

    def _braces(self, name: str) -> Steps[None]:
        """`{key:<quote>text<quote>,other:1}`: keys without quotes, texts between quotes of their own."""
        if (yield from self._source.peek()) != "{":
            raise Malformed
        self._call(name)
        yield from self._loose()

    def _loose(self) -> Steps[None]:
        source, quote = self._source, self._calls.quote
        char = yield from source.peek()
        if (yield from source.next_of(quote)):
            source.take(source.at + len(quote))
            yield from self._text(Finder([quote]))
        elif char in "{[":
            self._tell(source.take(source.at + 1))
            while (inner := (yield from source.peek())) not in "}]":
                if inner == ",":
                    self._tell(source.take(source.at + 1) + " ")
                    continue
                if char == "{":
                    key = (yield from source.captured(Finder([":"]), NAME_MAX)).strip().removeprefix(quote)
                    self._tell(f"{json.dumps(key.removesuffix(quote).strip(chr(34)), ensure_ascii=False)}: ")
                yield from self._loose()
            self._tell(source.take(source.at + 1))
        else:
            self._tell(_cast((yield from source.run(_LOOSE)).strip(), set()))

    def _whole(self, name: str) -> Steps[None]:
        """Calls as Python writes them, or arguments in lines `key: value`: read when they are whole."""
        source = self._source
        text = yield from source.captured(Finder(self._calls.closes), CAPTURED_MAX)
        calls = _python_calls(text) if self._calls.content == "python-call-list" else [(name, self._lines(name, text))]
        for called, arguments in calls:
            self._call(called)
            self._tell(arguments)

    def _lines(self, name: str, text: str) -> str:
        pairs = [line.partition(":") for line in text.splitlines() if ":" in line]
        told = (f"{json.dumps(key.strip())}: {_cast(value.strip(), self._types(name, key.strip()))}" for key, _, value in pairs)
        return "{" + ", ".join(told) + "}"

    def _text(self, closes: Finder) -> Steps[None]:
        """A text, told as a JSON string."""
        self._tell('"')
        yield from self._source.until(closes, lambda text: self._tell(json.dumps(text, ensure_ascii=False)[1:-1]))
        self._tell('"')

    def _types(self, name: str, key: str) -> set[str]:
        """What an argument may be, as far as its function says."""
        schema = self._tools.get(name, {}).get("properties", {}).get(key, {})
        choices = [schema, *schema.get("anyOf", []), *schema.get("oneOf", [])] if isinstance(schema, dict) else []
        types = (choice.get("type", []) for choice in choices if isinstance(choice, dict))
        return {name for of in types for name in ([of] if isinstance(of, str) else of)}


def _cast(text: str, types: set[str]) -> str:
    """A value as JSON: what it says where it is JSON of a type that is allowed, else its text."""
    stripped = text.strip()
    try:
        value = _WORDS[stripped] if stripped in _WORDS else json.loads(stripped, strict=False)
    except (ValueError, RecursionError):
        return json.dumps(text, ensure_ascii=False)
    if types and "string" in types and not types.intersection(_TYPES[type(value)]):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _python_calls(text: str) -> list[tuple[str, str]]:
    """Names and arguments of `[f(a=1), g(b="x")]`."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        calls = []
        for call in tree.elts if isinstance(tree, ast.List) else [tree]:
            if not isinstance(call, ast.Call) or call.args or any(one.arg is None for one in call.keywords):
                raise Malformed
            arguments = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
            calls.append((ast.unparse(call.func), json.dumps(arguments, ensure_ascii=False)))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise Malformed from None
    if not calls:
        raise Malformed
    return calls
