"""Tools and calls in a conversation: as chat templates take them, and in words of our own for templates that know none.

Families want the calls of earlier turns in different manners: some go through the arguments, some print them, some look for turns
without content, some count the characters of ids. Which one, only rendering tells: what a template fails at, refuses or drops
in one manner it is given in the next one, and at last as text, so that no conversation that a model has led is ever a dead end.

In words of our own, called generic, a JSON object is the whole answer: `{"tool_calls":[{"name":...,"arguments":{...}}]}`."""

import json
import re
from collections.abc import Sequence
from functools import reduce
from hashlib import sha256
from itertools import product
from typing import Any, NamedTuple, TypeVar

import msgspec

from poise.wire.text import SYSTEM_ROLES, Message
from poise.worker.text.hidden import Hidden

T = TypeVar("T", dict[str, Any], list[Any], str)

SHORT_ID = re.compile("[A-Za-z0-9]{9}")
"""Mistral's templates refuse any other."""
PROBE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "probe_of_tools",
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "A text."}}},
    },
}
"""What a template that knows tools shows the name of."""
DEPTH_MAX = 6
"""Of types that are put into words."""
_INTRODUCTION = "You can call these functions:\n"
_DIRECTIONS = (
    '\nTo call some, answer with nothing but {"tool_calls":[{"name":"...","arguments":{...}}]}. '
    "You are then told what they return. Else answer in plain words."
)


class Manner(NamedTuple):
    """How a template is given calls and their results."""

    short_ids: bool = False
    empty: str | None = ""
    """The content of a turn that says nothing and calls."""
    parsed: bool = True
    """Arguments are an object, or else the text that they came as."""


def manners(messages: Sequence[Message]) -> list[Manner]:
    """Those that differ for this conversation, the commonest first."""
    calls = [call for message in messages for call in message.calls]
    ids = [call.id for call in calls] + [message.tool_call_id or "" for message in messages if message.role == "tool"]
    says_nothing = any(message.calls and not message.content for message in messages)
    return [
        Manner(*each)
        for each in product(
            (False, True) if any(not SHORT_ID.fullmatch(one) for one in ids) else (False,),
            ("", None) if says_nothing else ("",),
            (True, False) if calls else (True,),
        )
    ]


def call_variables(message: Message, owner: int, hidden: Hidden, manner: Manner) -> list[dict[str, Any]]:
    """The calls of a turn, for a template. `owner`: who their names are hidden for."""
    made = []
    for call in message.calls:
        arguments = parsed(call.arguments) if manner.parsed else None
        shown = hidden.hide(call.arguments) if arguments is None else hidden.value(arguments)
        function = {"name": hidden.hide(call.name, owner), "arguments": shown}
        made.append({"id": shown_id(call.id, hidden, manner), "type": "function", "function": function})
    return made


def shown_id(call_id: str, hidden: Hidden, manner: Manner) -> Any:
    """A call's id: as it is, or nine letters and digits that follow from it."""
    if manner.short_ids and not SHORT_ID.fullmatch(call_id):
        return sha256(call_id.encode()).hexdigest()[:9]
    return hidden.value(call_id)


def parsed(arguments: str) -> dict[str, Any] | None:
    """The object that the text of arguments stands for; None: it is none. No text is no arguments."""
    try:
        value = json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def with_names(messages: Sequence[Message]) -> list[Message]:
    """Results with the name of what was called, which some templates show."""
    names = {call.id: call.name for message in messages for call in message.calls if call.id}
    return [
        msgspec.structs.replace(message, name=names[message.tool_call_id])
        if message.role == "tool" and message.name is None and message.tool_call_id in names
        else message
        for message in messages
    ]


def generic(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """The conversation in words of our own: tools in the system message, calls as JSON, results as what the user says."""
    made: list[Message] = []
    is_result = False
    for message in messages:
        if message.calls:
            said = "\n".join(filter(None, (message.content, _calls_json(message))))
            message = msgspec.structs.replace(message, content=said, calls=())
        was_result, is_result = is_result, message.role == "tool"
        if is_result:
            about = f"Result of {message.name}" if message.name else "Result"
            message = Message("user", f"{about}:\n{message.content}")
        # Many templates want turns that alternate.
        if (is_result or was_result) and made and message.role == made[-1].role == "user":
            made[-1] = Message("user", f"{made[-1].content}\n\n{message.content}")
        else:
            made.append(message)
    if not tools:
        return made
    lines = "\n".join(_signature(tool["function"]) for tool in tools)
    text = f"{_INTRODUCTION}{lines}{_DIRECTIONS}"
    if not made or made[0].role not in SYSTEM_ROLES:
        return [Message("system", text), *made]
    content = f"{made[0].content}\n\n{text}" if made[0].content.strip() else text
    return [msgspec.structs.replace(made[0], content=content), *made[1:]]


def _signature(function: dict[str, Any]) -> str:
    """A function in a few words, which are half of the tokens of its schema: `f(city: string, unit?: "C"|"F"): what it does`."""
    schema = function["parameters"]
    described = ((name, _of(one, "description", str)) for name, one in _of(schema, "properties", dict).items())
    about = "\n  ".join(filter(None, [function.get("description", ""), *(f"{name}: {text}" for name, text in described if text)]))
    return f"{function['name']}({_fields(schema, schema, DEPTH_MAX)}){': ' if about else ''}{about}"


def _fields(schema: Any, root: Any, depth: int) -> str:
    required, properties = _of(schema, "required", list), _of(schema, "properties", dict)
    marked = ((name if name in required else f"{name}?", one) for name, one in properties.items())
    return ", ".join(f"{name}: {_type(one, root, depth - 1)}" for name, one in marked)


def _type(schema: Any, root: Any, depth: int) -> str:
    """A part of the schema `root` in the words of TypeScript; what has none there as it is."""
    if not depth or schema in ({}, True):
        return "any"
    if ref := _of(schema, "$ref", str):
        parts = filter(None, ref.removeprefix("#").split("/"))
        return _type(reduce(lambda found, part: _of(found, part, dict), parts, root), root, depth - 1)
    if options := _of(schema, "enum", list):
        return "|".join(map(_dumped, options))
    if choices := _of(schema, "anyOf", list) or _of(schema, "oneOf", list):
        return "|".join(_type(choice, root, depth - 1) for choice in choices)
    kind = _of(schema, "type", str)
    if kind == "array":
        return f"{_type(schema.get('items', True), root, depth - 1)}[]"
    return f"{{{_fields(schema, root, depth)}}}" if _of(schema, "properties", dict) else kind or _dumped(schema)


def _of(schema: Any, name: str, kind: type[T]) -> T:
    """A value of a schema, or an empty one where there is none of that kind."""
    value = schema.get(name) if isinstance(schema, dict) else None
    return value if isinstance(value, kind) else kind()


def _calls_json(message: Message) -> str:
    """Arguments that are no object stand there as the text that they are."""
    calls = [(call, parsed(call.arguments)) for call in message.calls]
    made = [{"name": call.name, "arguments": call.arguments if known is None else known} for call, known in calls]
    return _dumped({"tool_calls": made})


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
