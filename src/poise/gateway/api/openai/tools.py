"""Tools in OpenAI's requests: what is declared, what may be called, and the calls and results of earlier turns, in every form.

The forms are `tools` with `tool_choice`, also flat as in the Responses API, and `functions` with `function_call` as they were.
Tools of a kind that is not run here, such as web search, are left out and named: who offers them loses nothing but the offer."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from poise.gateway.api.fields import STRICT, Custom, Field, Flag, Ignored, Schema, Text, read_list, read_object
from poise.gateway.api.openai.rendering import is_flat
from poise.gateway.http.body import JsonObject
from poise.gateway.request.refusals import ApiError, invalid_value, missing_parameter, shown, unsupported_parameter
from poise.gateway.request.tools import Tool, ToolMode, ToolUse
from poise.wire.text import Call

TOOLS_MAX, TOOLS_BYTES_MAX, DEPTH_MAX = 128, 1 << 18, 64
CALLS_MAX = 128
"""Of one turn."""
NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_NAME_RULE = "be 1 to 128 letters, digits, '_', '-' or '.'"
_MODES = {"none": ToolMode.NONE, "auto": ToolMode.AUTO, "required": ToolMode.REQUIRED, "any": ToolMode.REQUIRED}
_DESCRIPTION, _STRICT, _ID = Text("description", ""), Flag("strict", ""), Text("id", "", max_chars=256)


def _list(what: str) -> Schema:
    return {"type": "array", "items": {"type": "object"}, "maxItems": TOOLS_MAX, "description": what}


def _any(value: object, param: str) -> Any:
    return value


_CHOICE: Schema = {"anyOf": [{"type": "string", "enum": list(_MODES)}, {"type": "object"}]}
TOOLS: Field[Any] = Custom("tools", "Functions that the model may call.", _any, _list("Functions."))
TOOL_CHOICE: Field[Any] = Custom(
    "tool_choice",
    "`none`: text; `auto`: as the model likes; `required`: a call; or the function that is to be called, or those that may be.",
    _any,
    _CHOICE,
)
PARALLEL = Flag("parallel_tool_calls", "False: at most one call an answer.")
FUNCTIONS: Field[Any] = Custom("functions", "The older form of `tools`.", _any, _list("Functions."))
FUNCTION_CALL: Field[Any] = Custom("function_call", "The older form of `tool_choice`.", _any, _CHOICE)
_CALLS = {"type": "array", "items": {"type": "object"}, "maxItems": CALLS_MAX}
CALLS: Field[Any] = Custom("tool_calls", "Calls that an assistant has made.", _any, _CALLS)
CALLED: Field[Any] = Custom("function_call", "The older form of `tool_calls`: one call.", _any, {"type": "object"})
_FORMS = (("functions", "function_call"), ("tools", "tool_choice"))
FIELDS = (TOOLS, TOOL_CHOICE, PARALLEL, FUNCTIONS, FUNCTION_CALL)


def read_tools(values: Mapping[str, Any], ignored: Ignored = STRICT) -> tuple[ToolUse, bool]:
    """The tools of a request, and whether they are in the older form. Raises ApiError."""
    older, newer = ([name for name in names if values.get(name)] for names in _FORMS)
    if older and newer:
        message = f"'{older[0]}' and '{newer[0]}' are two forms of the same. Send one of them."
        raise ApiError(400, "conflicting_parameters", message, param=older[0])
    listed, param = _FORMS[0] if older else _FORMS[1]
    tools: list[Tool] = []
    for i, entry in enumerate(_entries(listed, values.get(listed))):
        tool = _read_function(entry, f"{listed}[{i}]") if older else _read_tool(entry, f"{listed}[{i}]", ignored)
        if tool is None:
            continue
        if any(tool.name == other.name for other in tools):
            raise invalid_value(tool.param, "be another name than those before it", tool.name)
        tools.append(tool)
    mode, allowed, is_one = _read_choice(values.get(param), param)
    for name in allowed:
        if not any(tool.name == name for tool in tools):
            known = ", ".join(shown(tool.name) for tool in tools[:8]) or "none"
            raise invalid_value(param, f"name a function that is declared ({known})", name, f"names {shown(name)}")
    if mode is ToolMode.REQUIRED and not tools:
        found = f"is {shown(values[param])}, and there is none"
        raise invalid_value(param, "come with functions to call", values[param], found)
    parallel = PARALLEL.get(values, True)
    for field in () if tools else FIELDS:
        if values.get(field.name) is not None:
            ignored.take(field.name)
    return ToolUse(tuple(tools), mode, allowed, parallel and not is_one and not older), bool(older)


def read_calls(message: JsonObject, param: str) -> tuple[Call, ...]:
    """The calls of an assistant's turn, in either form. Arguments may be any text: models write what they like."""
    if message.get("tool_calls"):
        calls = read_list(message["tool_calls"], f"{param}.tool_calls", "a list of calls", CALLS_MAX)
        return tuple(_read_call(call, f"{param}.tool_calls[{i}]") for i, call in enumerate(calls))
    if message.get("function_call"):
        return (_read_called(read_object(message["function_call"], f"{param}.function_call"), f"{param}.function_call", ""),)
    return ()


def _read_call(value: object, param: str) -> Call:
    call = read_object(value, param)
    call_id = _ID.read(call["id"], f"{param}.id") if call.get("id") is not None else ""
    if "function" in call or "name" not in call:
        if call.get("function") is None:
            raise missing_parameter(f"{param}.function", "an object with the name and the arguments is needed")
        return _read_called(read_object(call["function"], f"{param}.function"), f"{param}.function", call_id)
    return _read_called(call, param, call_id)


def _read_called(function: JsonObject, param: str, call_id: str) -> Call:
    name, arguments = _name_of(function, param, 256), function.get("arguments")
    if type(arguments) is not str:
        if not is_flat(arguments, DEPTH_MAX):
            raise invalid_value(f"{param}.arguments", f"be nested {DEPTH_MAX} times at most", None, "is deeper")
        arguments = "" if arguments is None else json.dumps(arguments, ensure_ascii=False)
    return Call(call_id, name, arguments)


def _entries(param: str, value: object) -> list[Any]:
    if value is None or value == []:
        return []
    entries = read_list(value, param, "a list of functions", TOOLS_MAX)
    if not is_flat(entries, DEPTH_MAX):
        raise invalid_value(param, f"be nested {DEPTH_MAX} times at most", None, "is deeper")
    if (n := len(msgspec.json.encode(entries))) > TOOLS_BYTES_MAX:
        rule = f"have at most {TOOLS_BYTES_MAX} bytes of JSON; offer fewer functions, or describe them in fewer words"
        raise invalid_value(param, rule, None, f"has {n}")
    return entries


def _read_tool(value: object, param: str, ignored: Ignored) -> Tool | None:
    """None: of a kind that there is not."""
    tool = read_object(value, param)
    kind = Text("type", "").read(tool.get("type") or "function", f"{param}.type")
    if kind != "function":
        if ignored.strict:
            raise unsupported_parameter(param, kind, "only functions can be called; leave it out")
        ignored.take(f"{param}.{kind[:64]}")
        return None
    if "function" not in tool and "name" in tool:
        return _read_function(tool, param)
    if tool.get("function") is None:
        raise missing_parameter(f"{param}.function", "an object with the name and the parameters is needed")
    strict = tool.get("strict")
    return _read_function({"strict": strict, **read_object(tool["function"], f"{param}.function")}, f"{param}.function")


def _read_function(value: object, param: str) -> Tool:
    function = read_object(value, param)
    name = _name_of(function, param)
    if not NAME.fullmatch(name):
        raise invalid_value(f"{param}.name", _NAME_RULE, name)
    parameters = function.get("parameters")
    if parameters is not None:
        kind = read_object(parameters, f"{param}.parameters").get("type", "object")
        if kind != "object":
            raise invalid_value(f"{param}.parameters.type", 'be "object": arguments have names', kind)
        for key, schema in read_object(parameters.get("properties") or {}, f"{param}.parameters.properties").items():
            if type(schema) is not bool:
                read_object(schema, f"{param}.parameters.properties.{key[:64]}")
    description = _DESCRIPTION.read(function.get("description") or "", f"{param}.description")
    strict = _STRICT.read(function.get("strict") or False, f"{param}.strict")
    return Tool(name, description, parameters or None, strict, f"{param}.name")


def _read_choice(value: object, param: str) -> tuple[ToolMode, tuple[str, ...], bool]:
    """What may be done, the names that it is limited to, and whether that is exactly one call."""
    if value is None:
        return ToolMode.AUTO, (), False
    if type(value) is str:
        if value not in _MODES:
            raise invalid_value(param, f"be one of {', '.join(map(shown, _MODES))}, or an object", value)
        return _MODES[value], (), False
    choice = read_object(value, param)
    kind = choice.get("type", "function")
    if kind == "function":
        return ToolMode.REQUIRED, (_read_named(choice, param),), True
    if kind != "allowed_tools":
        raise invalid_value(f"{param}.type", 'be "function" or "allowed_tools": no other tools are run here', kind)
    nested = "allowed_tools" in choice
    inner = f"{param}.allowed_tools" if nested else param
    allowed = read_object(choice["allowed_tools"], inner) if nested else choice
    mode = Text("mode", "", choices=("auto", "required")).read(allowed.get("mode", "auto"), f"{inner}.mode")
    entries = read_list(allowed.get("tools"), f"{inner}.tools", "a list of functions", TOOLS_MAX)
    names = [_read_named(read_object(entry, f"{inner}.tools[{i}]"), f"{inner}.tools[{i}]") for i, entry in enumerate(entries)]
    return _MODES[mode], tuple(dict.fromkeys(names)), False


def _read_named(choice: JsonObject, param: str) -> str:
    """The name in `{"function": {"name"}}`, or `{"name"}`."""
    if choice.get("type", "function") != "function":
        raise invalid_value(f"{param}.type", 'be "function": no other tools are run here', choice["type"])
    if "function" in choice:
        param, choice = f"{param}.function", read_object(choice["function"], f"{param}.function")
    return _name_of(choice, param)


def _name_of(function: JsonObject, param: str, max_chars: int = 1 << 30) -> str:
    if function.get("name") is None:
        raise missing_parameter(f"{param}.name", "the name of the function is needed")
    return Text("name", "", max_chars=max_chars).read(function["name"], f"{param}.name")
