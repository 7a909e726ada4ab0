"""Structured output in every form that clients of OpenAI's API send: OpenAI's own, llama-server's, and both of vLLM's.

A request has one of them. Which schema keywords there are is not known here: a text worker says what cannot be followed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec

from poise.gateway.api.fields import Custom, Field, Flag, Schema, Text, read_list, read_object
from poise.gateway.http.body import JsonObject
from poise.gateway.request import structure as s
from poise.gateway.request.refusals import ApiError, invalid_value, missing_parameter, unsupported_parameter
from poise.gateway.request.structure import COMPACT, Structure, Whitespace

MAX_CHOICES = 4096
MAX_TAGS = 128
_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_TEXT, _ANY_TEXT, _FLAG = Text("", "", min_chars=1), Text("", ""), Flag("", "")


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
    kind = Text("", "", choices=_FORMATS).read(form["type"], f"{param}.type")
    if kind == "text":
        return None
    if kind == "structural_tag":
        return _read_tags(form, param, whitespace)
    if form.get("schema") is not None:  # llama-server's way, of both types
        return s.of_schema(_schema(form["schema"], f"{param}.schema"), f"{param}.schema", whitespace)
    if kind == "json_object":
        return s.of_json_object(param, whitespace)
    where = f"{param}.json_schema.schema"
    schema = read_object(form.get("json_schema", {}), f"{param}.json_schema").get("schema")
    if schema is None:
        raise missing_parameter(where, "the JSON Schema of the answer is needed")
    return s.of_schema(_schema(schema, where), where, whitespace)


def _read_tags(value: object, param: str, whitespace: Whitespace) -> Structure:
    """vLLM's and SGLang's: `structures` of begin, schema and end, and the `triggers` that they begin with."""
    form = _schema(value, param)
    where, tags = f"{param}.triggers", []
    triggers = [_TEXT.read(t, where) for t in read_list(form.get("triggers"), where, "a list of strings", MAX_TAGS)]
    where = f"{param}.structures"
    for i, one in enumerate(read_list(form.get("structures"), where, "a list of tags", MAX_TAGS)):
        at = f"{where}[{i}]"
        tag = read_object(one, at)
        begin = _TEXT.read(tag.get("begin"), f"{at}.begin")
        trigger = next((t for t in triggers if begin.startswith(t)), None)
        if trigger is None:
            raise invalid_value(f"{at}.begin", "begin with one of the triggers", begin)
        end = _ANY_TEXT.read(tag.get("end", ""), f"{at}.end")
        tags.append((trigger, begin, _schema(tag.get("schema", {}), f"{at}.schema"), end))
    return s.of_tags(tags, param, whitespace)


def _read_choice(value: object, param: str, _: Whitespace) -> Structure:
    choices = read_list(value, param, "a list of strings", MAX_CHOICES)
    return s.of_choice([_TEXT.read(choice, f"{param}[{i}]") for i, choice in enumerate(choices)], param)


def _read_grammar(value: object, param: str, _: Whitespace) -> Structure | None:
    text = _ANY_TEXT.read(value, param)
    return s.of_grammar(text, param) if text.strip() else None  # llama-server's clients send "" for none


Reader = Callable[[object, str, Whitespace], Structure | None]
Form = tuple[Reader, Schema]
"""How it is read, and its JSON Schema."""
_JSON: Form = (
    lambda value, param, whitespace: s.of_schema(_schema(value, param), param, whitespace),
    {"anyOf": [{"type": "object"}, {"type": "string"}, {"const": True}]},
)
_STRINGS: Schema = {"items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_CHOICES}
_OUTPUTS: dict[str, Form] = {
    "json": _JSON,
    "regex": (lambda value, param, _: s.of_regex(_TEXT.read(value, param), param), {"type": "string", "minLength": 1}),
    "choice": (_read_choice, {"type": "array"} | _STRINGS),
    "grammar": (_read_grammar, {"type": "string"}),
    "json_object": (
        lambda value, param, whitespace: s.of_json_object(param, whitespace) if _FLAG.read(value, param) else None,
        {"type": "boolean"},
    ),
    "structural_tag": (_read_tags, {"type": "object"}),
}
"""By key of `structured_outputs`."""


def _alone(read: Reader, value: object, param: str) -> Structure | None:
    return read(value, param, COMPACT)


def _read_outputs(value: object, param: str, whitespace: Whitespace) -> Structure | None:
    form = read_object(value, param)
    if (disabled := form.get("disable_any_whitespace")) is not None:
        whitespace = COMPACT if _FLAG.read(disabled, f"{param}.disable_any_whitespace") else s.FLEXIBLE
    if (pattern := form.get("whitespace_pattern")) is not None:
        whitespace = s.whitespace_like(_TEXT.read(pattern, f"{param}.whitespace_pattern"))
    if form.get("disable_additional_properties"):
        hint = "write 'additionalProperties': false into the schema"
        raise unsupported_parameter(f"{param}.disable_additional_properties", True, hint)
    unknown = [name for name in form if name not in _OUTPUTS and not name.startswith(("disable_", "whitespace_"))]
    if unknown:
        raise invalid_value(param, f"have one of {', '.join(_OUTPUTS)}", form, f"has '{unknown[0]}'")
    return _only(form, f"{param}.", _OUTPUTS, whitespace)


_GUIDED = ("json", "regex", "choice", "grammar")
_OLDER = "An older name of `structured_outputs.{}`."
_FORMS: dict[str, Form] = {
    "response_format": (_read_response_format, {"type": "object"}),
    "json_schema": _JSON,
    "grammar": _OUTPUTS["grammar"],
    "structured_outputs": (_read_outputs, {"type": "object"}),
} | {f"guided_{name}": _OUTPUTS[name] for name in _GUIDED}
_ABOUT = {
    "response_format": "What the answer must be: text, any JSON object, or what a JSON Schema has.",
    "json_schema": "The answer is JSON that this schema has, as llama-server has it.",
    "grammar": "The answer follows this grammar: GBNF, or Lark as llguidance has it.",
    "structured_outputs": "vLLM's form: one of " + ", ".join(_OUTPUTS) + ".",
} | {f"guided_{name}": _OLDER.format(name) for name in _GUIDED}
_WHITESPACE = Text("guided_whitespace_pattern", _OLDER.format("whitespace_pattern"), min_chars=1)
FIELDS: tuple[Field[Any], ...] = (
    *(Custom(name, _ABOUT[name], partial(_alone, read), shape) for name, (read, shape) in _FORMS.items()),
    _WHITESPACE,
)


def read_structure(values: JsonObject) -> Structure | None:
    """What the answer must be, however it is asked for. Two ways at once are an error that names both."""
    pattern = _WHITESPACE.get(values, "")
    return _only(values, "", _FORMS, s.whitespace_like(pattern) if pattern else COMPACT)


def _only(values: JsonObject, prefix: str, forms: Mapping[str, Form], whitespace: Whitespace) -> Structure | None:
    found: dict[str, Structure] = {}
    for name, value in values.items():
        if name in forms and value is not None:
            structure = forms[name][0](value, prefix + name, whitespace)
            found |= {} if structure is None else {prefix + name: structure}
    if len(found) > 1:
        first, second, *_ = found
        message = f"'{first}' and '{second}' both say what the answer must be. Send one of them."
        raise ApiError(400, "conflicting_parameters", message, param=second)
    return next(iter(found.values()), None)
