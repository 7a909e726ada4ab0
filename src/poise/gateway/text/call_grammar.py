"""Grammars of calls: what an answer may be where it has to call a function, or its calls have to be right.

A call is written as the model's family writes it, with the marks of its response template, and arguments by the schema of the
function. Where an answer may also be text, it is free until a call begins, and from there on that has to be one.

Arguments that a family does not write as JSON or between tags are left to the model: only the function is certain then."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from poise.gateway.request.tools import NO_PARAMETERS, Tool, ToolMode, ToolUse
from poise.gateway.text.reading.templates import ANYTHING, NAME, SPACE, Calls, Template

CALLS_MAX = 16
"""Of an answer that has to be calls: a small model would not stop."""
_COMPACT = {"whitespace_flexible": False, "coerce_one_of": True}
_SPACED = _COMPACT | {"item_separator": ", ", "key_separator": ": "}
_GENERIC_BEGIN, _GENERIC_END = '{"tool_calls":[', "]}"
_OPENED = ("$ref", "allOf", "anyOf", "oneOf", "patternProperties", "additionalProperties")
_LINE, _TEXT = r"/\n?/", r"/(.|\n)*/"
_MARK = re.compile("([\ud800-\udfff])")
"""A character that stands for a control token."""


def needs_grammar(use: ToolUse, template: Template) -> bool:
    """Whether an answer is to be held to anything. Models without calls of their own always are: they have had no training."""
    is_limited = use.mode is ToolMode.REQUIRED or use.allowed or not use.parallel or any(t.strict for t in use.tools)
    return bool(use.callable) and bool(is_limited or _calls(template).content == "generic")


def schema_of(tool: Tool, *, lenient: bool, spaced: bool = False) -> dict[str, Any]:
    """The schema that arguments are held to: nothing but what is declared, where it does not say otherwise.

    `lenient`: what cannot be held is let go, because nobody asked for it."""
    schema = dict(NO_PARAMETERS if tool.parameters is None else tool.parameters)
    schema.setdefault("type", "object")
    if "properties" in schema and not any(name in schema for name in _OPENED):
        schema["additionalProperties"] = False
    options = _SPACED if spaced else _COMPACT
    return schema | {"x-guidance": options | {"lenient": True} if lenient else options}


def grammar_of(use: ToolUse, template: Template, free: Collection[str] = (), content: str = "") -> str:
    """The grammar in Lark, as llguidance reads it. `free`: functions whose schema is not held to; `content`: a rule for what
    may be said instead of calls."""
    forced = use.mode is ToolMode.REQUIRED
    tokens = {char: token for token, char in template.marks.items()}
    writer = _Writer(_calls(template), tokens, is_lazy=not (forced or content))
    names = []
    for n, tool in enumerate(use.callable):
        lenient = not (forced or tool.strict)
        schema = {"type": "object"} if tool.name in free else schema_of(tool, lenient=lenient, spaced=writer.is_spaced)
        names.append(f"call_{n}")
        writer.rules.append(f"{names[-1]}: {writer.call(tool.name, schema, n)}")
    writer.rules.append(f"call: {' | '.join(names)}")
    start = writer.calls(CALLS_MAX if use.parallel else 1)
    return "\n".join([f"start: {start} | {content}" if content and not forced else f"start: {start}", *writer.rules])


def _calls(template: Template) -> Calls:
    return template.calls if template.calls is not None else Calls("generic", bare=True)


class _Writer:
    """Writes one family's calls. `is_lazy`: there may be text before them, or instead."""

    def __init__(self, calls: Calls, tokens: Mapping[str, int], *, is_lazy: bool) -> None:
        self._calls = calls
        self._tokens = tokens
        self._is_lazy = is_lazy
        self.rules: list[str] = []
        self._parts = calls.opens[0] if calls.opens and not calls.bare else ()
        behind = self._parts[self._parts.index(NAME) + 1 :] if NAME in self._parts else ()
        # Mistral's older form: its newer one has a control token behind the name.
        self._is_list = calls.content == "json" and ANYTHING in behind and not any(map(_MARK.search, behind))
        self._is_generic = calls.content == "generic"
        self.is_spaced = not self._is_generic
        self._mark = self._items(self._parts[:1])
        if is_lazy:
            self._mark = self._lazy_mark()

    def calls(self, most: int) -> str:
        """Up to so many, in all that is around them."""
        if self._parts and not self._is_list:
            return f"call{{0,{most}}} REST" if self._is_lazy else f"call{_again(_LINE, most)}"
        if self._is_list:
            listed = f'{self._mark} "[" call{_again(_quoted(", "), most)} "]"'
        elif self._is_generic:
            listed = f"{_quoted(_GENERIC_BEGIN)} call{_again(_quoted(','), most)} {_quoted(_GENERIC_END)}"
        else:
            listed = f"call{_again(_quoted('; '), most)}"
        return f"{listed} | REST" if self._is_lazy else listed

    def call(self, name: str, schema: Mapping[str, Any], n: int) -> str:
        """One call of a function."""
        space = "" if self._is_generic else " "
        key = "parameters" if self._calls.bare and not self._is_generic else "arguments"
        whole = _quoted(f'{{"name":{space}{json.dumps(name)},{space}"{key}":{space}')
        arguments = f"%json {json.dumps(schema, ensure_ascii=False)}"
        if self._is_list or not self._parts:
            return f'{whole} {arguments} "}}"'
        # Of several marks that may close a call the first one has to.
        closes = [self._literal(text) for text in self._calls.closes]
        tail = " ".join(closes[:1] + [f"({_LINE} {close})?" for close in closes[1:]])
        head = f"{self._mark} {self._items(self._parts[1:], name)}"
        match self._calls.content:
            case "json" if NAME not in self._parts:
                return f'{head} {_LINE} {whole} {arguments} "}}" {_LINE} {tail}'
            case "json":
                return f"{head} {_LINE} {arguments} {_LINE} {tail}"
            case "xml-inline":
                return f"{head} {self._tagged(schema, n)} {_LINE} {tail}"
        return f"{head} {_TEXT}"

    def _tagged(self, schema: Mapping[str, Any], n: int) -> str:
        """Each argument between tags, in the order of the schema."""
        required, fields = schema.get("required", ()), []
        before, behind, opening, closing = map(self._literal, self._calls.parameter)
        for i, (key, field) in enumerate(schema.get("properties", {}).items()):
            value, options = f"value_{n}_{i}", field.get("enum", [field["const"]] if "const" in field else [])
            if field.get("type") != "string":
                shown = {"$defs": schema.get("$defs", {}), **field, "x-guidance": _SPACED}
                self.rules.append(f"{value}: %json {json.dumps(shown)} {_LINE} {closing}")
            elif options:
                self.rules.append(f"{value}: ({' | '.join(map(_quoted, options))}) {_LINE} {closing}")
            else:
                length = f"{{{field.get('minLength', 0)},{field.get('maxLength', '')}}}"
                self.rules.append(f"{value}[lazy]: /(.|\\n){length}/ {closing}")
            rule = f"({_LINE} {before} {_quoted(key)} {behind} {_LINE} {opening} {value})"
            fields.append(rule if key in required else f"{rule}?")
        return " ".join(fields)

    def _lazy_mark(self) -> str:
        """The mark of a call with all the text before it; what is text alone is the rule REST."""
        if not self._parts:
            begin = _GENERIC_BEGIN if self._is_generic else '{"name": "'
            self.rules.append(rf"REST: {_TEXT} & ~/{_regex(begin)}(.|\n)*/")
            return ""
        marks = [parts[0] for parts in self._calls.opens if not _MARK.search(parts[0])]
        others = rf" & ~/(.|\n)*({'|'.join(map(_regex, marks))})(.|\n)*/" if marks else ""
        self.rules.append(f"REST: {_TEXT}{others}")
        if _MARK.search(self._parts[0]):
            return f"REST {self._mark}"
        self.rules.append(f"head[lazy]: {_TEXT} {self._mark}")
        return "head"

    def _items(self, parts: Iterable[str], name: str = "") -> str:
        """A mark as grammar: texts, control tokens, and the name of the function."""
        made = {NAME: _quoted(name), SPACE: _LINE, ANYTHING: ""}
        return " ".join(filter(None, (made[part] if part in made else self._literal(part) for part in parts)))

    def _literal(self, text: str) -> str:
        """A text in which characters stand for control tokens."""
        parts = filter(None, _MARK.split(text))
        return " ".join(f"<[{self._tokens[part]}]>" if part in self._tokens else _quoted(part) for part in parts)


def _again(between: str, most: int) -> str:
    return f" ({between} call){{0,{most - 1}}}" if most > 1 else ""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _regex(text: str) -> str:
    """A text as Lark's regular expressions have it, between slashes."""
    return re.sub(r"([\[\]{}()|*+?.^$\\/])", r"\\\1", text)
