"""Structured output in every form that clients of OpenAI's API send: OpenAI's own, llama-server's, and both of vLLM's.

A request has one of them. Which schema keywords there are is not known here: a text worker says what cannot be followed.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from poise.gateway.api.fields import Custom, Field, Flag, Schema, Text, read_list, read_object
from poise.gateway.http.body import JsonObject
from poise.gateway.request import structure as s
from poise.gateway.request.refusals import (
    ApiError,
    invalid_value,
    missing_parameter,
    unsupported_parameter,
)
from poise.gateway.request.structure import COMPACT, Structure, Whitespace

MAX_CHOICES = 4096
MAX_TAGS = 128
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")


def _schema(value: object, param: str) -> dict[str, Any]:
    """A JSON Schema, perhaps as a string."""
    if type(value) is str:
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            raise invalid_value(param, "be a JSON Schema", value, f"is a string that is no JSON: {error}") from error
    if value is True:
        return {}
    return read_object(value, param)


def _read_response_format(value: object, param: str, whitespace: Whitespace) -> Structure | None:
    form = read_object(value, param)
    if form.get("type") is None:
        raise missing_parameter(f"{param}.type", f"one of {', '.join(_FORMATS)} is needed")
    kind = Text(f"{param}.type", "", choices=_FORMATS).read(form["type"], f"{param}.type")
    if kind == "text":
        return None
    if kind == "structural_tag":
        return _read_tags(form, param, whitespace)
    if form.get("schema") is not None:  # llama-server's way, of both types
        return s.of_schema(_schema(form["schema"], f"{param}.schema"), f"{param}.schema", whitespace)
    if kind == "json_object":
        return s.of_json_object(param, whitespace)
    named = read_object(form.get("json_schema", {}), f"{param}.json_schema")
    where = f"{param}.json_schema.schema"
    if named.get("schema") is None:
        raise missing_parameter(where, "the JSON Schema of the answer is needed")
    return s.of_schema(_schema(named["schema"], where), where, whitespace)


def _read_tags(value: object, param: str, whitespace: Whitespace) -> Structure:
    """vLLM's and SGLang's: `structures` of begin, schema and end, and the `triggers` that they begin with."""
    form = _schema(value, param)
    text = Text(param, "", min_chars=1)
    where = f"{param}.triggers"
    triggers = [text.read(t, where) for t in read_list(form.get("triggers"), where, "a list of strings", MAX_TAGS)]
    tags = []
    where = f"{param}.structures"
    for i, one in enumerate(read_list(form.get("structures"), where, "a list of tags", MAX_TAGS)):
        at = f"{where}[{i}]"
        tag = read_object(one, at)
        begin = text.read(tag.get("begin"), f"{at}.begin")
        trigger = next((t for t in triggers if begin.startswith(t)), None)
        if trigger is None:
            raise invalid_value(f"{at}.begin", "begin with one of the triggers", begin)
        end = Text(param, "").read(tag.get("end", ""), f"{at}.end")
        tags.append((trigger, begin, _schema(tag.get("schema", {}), f"{at}.schema"), end))
    return s.of_tags(tags, param, whitespace)


def _read_json_schema(value: object, param: str, whitespace: Whitespace) -> Structure:
    return s.of_schema(_schema(value, param), param, whitespace)


def _read_regex(value: object, param: str, whitespace: Whitespace) -> Structure:
    return s.of_regex(Text(param, "", min_chars=1).read(value, param), param)


def _read_choice(value: object, param: str, whitespace: Whitespace) -> Structure:
    choices = read_list(value, param, "a list of strings", MAX_CHOICES)
    return s.of_choice([Text(param, "", min_chars=1).read(c, f"{param}[{i}]") for i, c in enumerate(choices)], param)


def _read_grammar(value: object, param: str, whitespace: Whitespace) -> Structure | None:
    text = Text(param, "").read(value, param)
    return s.of_grammar(text, param) if text.strip() else None  # llama-server's clients send "" for none


def _read_object_flag(value: object, param: str, whitespace: Whitespace) -> Structure | None:
    return s.of_json_object(param, whitespace) if Flag(param, "").read(value, param) else None


_OUTPUTS = {
    "json": _read_json_schema,
    "regex": _read_regex,
    "choice": _read_choice,
    "grammar": _read_grammar,
    "json_object": _read_object_flag,
    "structural_tag": _read_tags,
}
"""By key of `structured_outputs`."""


def _read_outputs(value: object, param: str, whitespace: Whitespace) -> Structure | None:
    form = read_object(value, param)
    if form.get("disable_any_whitespace") is not None:
        where = f"{param}.disable_any_whitespace"
        whitespace = replace(whitespace, flexible=not Flag(where, "").read(form["disable_any_whitespace"], where))
    if form.get("whitespace_pattern") is not None:
        where = f"{param}.whitespace_pattern"
        whitespace = Whitespace(Text(where, "", min_chars=1).read(form["whitespace_pattern"], where))
    if form.get("disable_additional_properties"):
        hint = "write 'additionalProperties': false into the schema"
        raise unsupported_parameter(f"{param}.disable_additional_properties", True, hint)
    unknown = [name for name in form if name not in _OUTPUTS and not name.startswith(("disable_", "whitespace_"))]
    if unknown:
        raise invalid_value(param, f"have one of {', '.join(_OUTPUTS)}", form, f"has '{unknown[0]}'")
    asked = {name: value for name, value in form.items() if name in _OUTPUTS and value is not None}
    return _only(asked, {name: f"{param}.{name}" for name in asked}, _OUTPUTS, whitespace)


_READERS = {
    "response_format": _read_response_format,
    "json_schema": _read_json_schema,
    "grammar": _read_grammar,
    "structured_outputs": _read_outputs,
    "guided_json": _read_json_schema,
    "guided_regex": _read_regex,
    "guided_choice": _read_choice,
    "guided_grammar": _read_grammar,
}
_SCHEMA_SHAPE: Schema = {"anyOf": [{"type": "object"}, {"type": "string"}, {"const": True}]}
_SHAPES: dict[str, tuple[str, Schema]] = {
    "response_format": (
        "What the answer must be: text, any JSON object, or what a JSON Schema has.",
        {"type": "object"},
    ),
    "json_schema": ("The answer is JSON that this schema has, as llama-server has it.", _SCHEMA_SHAPE),
    "grammar": ("The answer follows this grammar: GBNF, or Lark as llguidance has it.", {"type": "string"}),
    "structured_outputs": ("vLLM's form: one of " + ", ".join(_OUTPUTS) + ".", {"type": "object"}),
    "guided_json": ("An older name of `structured_outputs.json`.", _SCHEMA_SHAPE),
    "guided_regex": ("An older name of `structured_outputs.regex`.", {"type": "string", "minLength": 1}),
    "guided_choice": (
        "An older name of `structured_outputs.choice`.",
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_CHOICES},
    ),
    "guided_grammar": ("An older name of `structured_outputs.grammar`.", {"type": "string"}),
}
_WHITESPACE = Text(
    "guided_whitespace_pattern", "An older name of `structured_outputs.whitespace_pattern`.", min_chars=1
)
FIELDS: tuple[Field[Any], ...] = (
    *(
        Custom(name, about, partial(_READERS[name], whitespace=COMPACT), shape)
        for name, (about, shape) in _SHAPES.items()
    ),
    _WHITESPACE,
)


def read_structure(values: JsonObject) -> Structure | None:
    """What the answer must be, however it is asked for. Two ways at once are an error that names both."""
    asked = {name: value for name, value in values.items() if name in _READERS and value is not None}
    if not asked:
        return None
    pattern = _WHITESPACE.get(values, "")
    return _only(asked, {name: name for name in asked}, _READERS, Whitespace(pattern) if pattern else COMPACT)


def _only(asked: JsonObject, params: dict[str, str], readers: Any, whitespace: Whitespace) -> Structure | None:
    found = [(name, one) for name in asked if (one := readers[name](asked[name], params[name], whitespace)) is not None]
    if len(found) > 1:
        first, second = (params[name] for name, _ in found[:2])
        message = f"'{first}' and '{second}' both say what the answer must be. Send one of them."
        raise ApiError(400, "conflicting_parameters", message, param=second)
    return found[0][1] if found else None
