"""How a model writes calls and reasoning, from what its chat template makes of conversations that differ in one thing.

The way of llama.cpp's analyser of templates: a turn with and without a call, with one and with two calls, with and without
reasoning. What is found are fields of a response template; where nothing certain is found, there are none."""

import json
import os
import re
from typing import Any

from poise.worker.text.chat_template import ChatTemplate

_NAMES, _KEY, _VALUE = ("alpha_function", "beta_function"), "some_key", "some value"
_ANSWER, _THOUGHT = "An answer.", "A thought."
_QUESTION = {"role": "user", "content": "A question?"}
_SCHEMA = {"type": "object", "properties": {_KEY: {"type": "string", "description": "A text."}}}
_FUNCTION = {"description": "A function.", "parameters": _SCHEMA}
_TOOLS = [{"type": "function", "function": {"name": name, **_FUNCTION}} for name in _NAMES]


def fields_of(template: ChatTemplate) -> dict[str, Any]:
    """`tool_calls` and `reasoning_content`, as far as they are found."""
    fields = {"tool_calls": _calls(template), "reasoning_content": _reasoning(template)}
    return {name: field for name, field in fields.items() if field}


def _turn(template: ChatTemplate, n_calls: int, *, parsed: bool = True, **said: Any) -> str:
    """What a template writes for an assistant's turn, with the marks of the turn itself."""
    arguments: Any = {_KEY: _VALUE}
    function = {"arguments": arguments if parsed else json.dumps(arguments)}
    call = {"id": "abcdefghi", "type": "function"}
    calls = [call | {"function": function | {"name": name}} for name in _NAMES[:n_calls]]
    turn = {"role": "assistant", "content": "", **({"tool_calls": calls} if calls else {}), **said}
    before = template.plain([_QUESTION], tools=_TOOLS)
    whole = template.plain([_QUESTION, turn], tools=_TOOLS)
    return whole[len(before) :] if before and whole.startswith(before) else ""


def _calls(template: ChatTemplate) -> dict[str, Any]:
    head, found, tail = _turn(template, 0, content=_ANSWER).partition(_ANSWER)
    for parsed in (True, False):
        one, two = (_turn(template, n, parsed=parsed) for n in (1, 2))
        if not found or _NAMES[0] not in one:
            continue
        one, two = (_behind(head, text).removesuffix(tail) for text in (one, two))
        field = _native(one) or _tagged(one)
        at, again = one.find(_NAMES[0]), two.find(_NAMES[1])
        if not field:
            return {}
        # The second call begins with what both names have before them: marks around all calls are no part of it.
        shared = _shared(one[:at][::-1], two[:again][::-1])[::-1].strip()
        if again > 0 and "open_pattern" in field and shared and shared != one[:at].strip():
            field["open_pattern"] += [_spelled(shared) + field["open_pattern"][0].removeprefix(_spelled(one[:at]))]
        if again > 0 and "content" not in field:
            between = two[two.find(_VALUE) + len(_VALUE) : again].partition("{")[0].lstrip('"}').strip()
            field["close"] += [between.removesuffix(field.get("open", shared)).strip()]
        return field | {"close": [*filter(None, field["close"])]}
    return {}


def _native(text: str) -> dict[str, Any]:
    """Arguments are JSON: inside of an object with the name, or behind it."""
    at = text.index(_NAMES[0])
    for brace in reversed([*re.finditer("{", text[:at])]):
        value, end = _json_at(text, brace.start())
        if _NAMES[0] in json.dumps(value):
            close = [text[end:].strip().removeprefix("]").strip()]
            opening = text[: brace.start()].strip().removesuffix("[").strip()
            return {"open": opening, "close": close} if opening else {"close": close, "bare": True}
    start = text.find("{", at)
    value, end = _json_at(text, start)
    if not value or _KEY not in value or not text[:at].strip():
        return {}
    name = f"{_spelled(text[:at])}(?P<name>\\w+){_spelled(text[at + len(_NAMES[0]) : start])}"
    return {"open_pattern": [name], "close": text[end:].split()}


def _tagged(text: str) -> dict[str, Any]:
    """Each argument is between tags."""
    at, key, value = text.index(_NAMES[0]), text.find(_KEY), text.find(_VALUE)
    behind_name, behind_key = text[at + len(_NAMES[0]) : key], text[key + len(_KEY) : value].strip()
    before_key = behind_name[behind_name.rfind("<") :]
    tags = re.fullmatch(r"([^<>]*(?:</[^>]*)?>)\s*(<[^>]*>)?", behind_key)
    closing = re.match(r"\s*(<[^>]*>)(.*)", text[value + len(_VALUE) :], re.DOTALL)
    if not (at < key < value and text[:at].strip() and before_key.startswith("<") and tags and closing):
        return {}
    name = f"{_spelled(text[:at])}(?P<name>\\w+){_spelled(behind_name[: behind_name.rfind('<')])}"
    parameter = [before_key, tags[1], tags[2] or "", closing[1]]
    return {"open_pattern": [name], "close": closing[2].split(), "content": "xml-inline", "parameter": parameter}


def _reasoning(template: ChatTemplate) -> dict[str, Any]:
    before, found, after = _turn(template, 0, content=_ANSWER, reasoning_content=_THOUGHT).partition(_THOUGHT)
    opened, closed = re.search(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*$", before), after.partition(_ANSWER)[0].strip()
    return {"open": opened[1], "close": closed} if found and opened and closed else {}


def _shared(one: str, other: str) -> str:
    """What both begin with."""
    return os.path.commonprefix([one, other])  # noqa: RUF071 (by characters is meant)


def _behind(head: str, text: str) -> str:
    """A turn without what all of them begin with: up to the end of a mark or of a line."""
    same = re.match(r".*[\s>\]|]", _shared(text, head), re.DOTALL)
    return text[same.end() :] if same is not None else text


def _json_at(text: str, start: int) -> tuple[dict[str, Any], int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return {}, 0
    return (value, end) if isinstance(value, dict) else ({}, 0)


def _spelled(text: str) -> str:
    """A text as a pattern, with any white space where it has some."""
    return "\\s*".join(map(re.escape, text.split()))
