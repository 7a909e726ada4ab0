"""Structured output in requests: every form of it is one grammar, and what is wrong is refused by the name of its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, prompt_body, says

S: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"type": "integer"}}}
COMPACT = {"x-guidance": {"whitespace_flexible": False}}
NAMED = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "description": "d", "schema": S}}
TAGS = {"triggers": ["<f"], "structures": [{"begin": "<f=a>", "schema": S, "end": "</f>"}, {"begin": "<f=b>", "end": ""}]}
TAGGED = [{"response_format": {"type": "structural_tag", **TAGS}}, {"structured_outputs": {"structural_tag": TAGS}}]
GBNF = 'root ::= "a" | "b"'
LARK = 'start: "a" | "b"'


def read(**fields: Any) -> Generate:
    return RequestParser(Settings()).chat(chat_body(**fields))


def lark(rule: str) -> dict[str, Any]:
    return {"lark_grammar": rule}


FORMS: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "openai, any object": (
        {"response_format": {"type": "json_object"}},
        "json_object",
        {"json_schema": {"type": "object", **COMPACT}},
        "response_format",
    ),
    "openai, a schema": (
        {"response_format": NAMED},
        "schema",
        {"json_schema": S | COMPACT},
        "response_format.json_schema.schema",
    ),
    "llama-server, an object with a schema": (
        {"response_format": {"type": "json_object", "schema": S}},
        "schema",
        {"json_schema": S | COMPACT},
        "response_format.schema",
    ),
    "llama-server, a schema": (
        {"response_format": {"type": "json_schema", "schema": S}},
        "schema",
        {"json_schema": S | COMPACT},
        "response_format.schema",
    ),
    "llama-server, a schema at the top": ({"json_schema": S}, "schema", {"json_schema": S | COMPACT}, "json_schema"),
    "llama-server, a grammar": ({"grammar": GBNF}, "gbnf", GBNF, "grammar"),
    "vllm, json": ({"structured_outputs": {"json": S}}, "schema", {"json_schema": S | COMPACT}, "structured_outputs.json"),
    "vllm, json as a string": (
        {"structured_outputs": {"json": json.dumps(S)}},
        "schema",
        {"json_schema": S | COMPACT},
        "structured_outputs.json",
    ),
    "vllm, regex": (
        {"structured_outputs": {"regex": r"a/b\/\d"}},
        "regex",
        lark(r"start: /a\/b\/\d/"),
        "structured_outputs.regex",
    ),
    "vllm, choice": (
        {"structured_outputs": {"choice": ["yes", 'n"o']}},
        "choice",
        lark('start: "yes" | "n\\"o"'),
        "structured_outputs.choice",
    ),
    "vllm, lark": ({"structured_outputs": {"grammar": LARK}}, "lark", lark(LARK), "structured_outputs.grammar"),
    "vllm, any object": (
        {"structured_outputs": {"json_object": True, "disable_any_whitespace": False}},
        "json_object",
        {"json_schema": {"type": "object", "x-guidance": {"whitespace_flexible": True}}},
        "structured_outputs.json_object",
    ),
    "vllm, a pattern of white space": (
        {"structured_outputs": {"json": S, "whitespace_pattern": " ?"}},
        "schema",
        {"json_schema": S | {"x-guidance": {"whitespace_pattern": " ?"}}},
        "structured_outputs.json",
    ),
    "older vllm, json": (
        {"guided_json": S, "guided_whitespace_pattern": " ?"},
        "schema",
        {"json_schema": S | {"x-guidance": {"whitespace_pattern": " ?"}}},
        "guided_json",
    ),
    "older vllm, regex": ({"guided_regex": "a+"}, "regex", lark("start: /a+/"), "guided_regex"),
    "older vllm, choice": ({"guided_choice": ["a"]}, "choice", lark('start: "a"'), "guided_choice"),
    "older vllm, grammar": ({"guided_grammar": GBNF}, "gbnf", GBNF, "guided_grammar"),
    "one asked for, the others null": (
        {"response_format": {"type": "text"}, "guided_regex": "a+", "guided_json": None, "grammar": ""},
        "regex",
        lark("start: /a+/"),
        "guided_regex",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_one_grammar(name: str) -> None:
    """With its kind, and the place at which its user wrote it; properties stay in their order."""
    fields, kind, grammar, param = FORMS[name]
    structure = read(**fields).structure
    assert structure is not None
    assert (structure.kind, structure.param) == (kind, param)
    if kind == "gbnf":
        assert structure.text == grammar
    else:
        assert json.loads(structure.text) == {"grammars": [grammar]}
        assert '"b"' not in structure.text or structure.text.index('"b"') < structure.text.index('"a"')
    assert RequestParser(Settings()).completion(prompt_body(**fields)).structure == structure


@pytest.mark.parametrize("fields", [{}, {"response_format": None}, {"response_format": {"type": "text"}}, {"grammar": " "}])
def test_text_is_no_structure(fields: dict[str, Any]) -> None:
    assert read(**fields).structure is None


@pytest.mark.parametrize("form", TAGGED)
def test_structural_tags_are_text_with_calls_in_it(form: dict[str, Any]) -> None:
    structure = read(**form).structure
    assert structure is not None
    assert structure.kind == "structural_tag"
    (grammar,) = json.loads(structure.text)["grammars"]
    lines = grammar["lark_grammar"].splitlines()
    assert lines[0] == "start: (tag_0 | tag_1)* rest"
    assert 'tag_0_trigger[lazy]: TEXT "<f"' in lines
    assert any(line.startswith('tag_0: tag_0_trigger "=a>" %json {"type":"object"') for line in lines)


ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
    ({"response_format": "json"}, "invalid_type", "response_format"),
    ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 7}}},
        "invalid_type",
        "response_format.json_schema.schema",
    ),
    ({"json_schema": "{"}, "invalid_value", "json_schema"),
    ({"structured_outputs": {"jsn": S}}, "invalid_value", "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, "invalid_value", "structured_outputs.choice"),
    ({"structured_outputs": {"choice": ["a", 1]}}, "invalid_type", "structured_outputs.choice[1]"),
    ({"structured_outputs": {"regex": ""}}, "invalid_value", "structured_outputs.regex"),
    (
        {"structured_outputs": {"json": S, "disable_additional_properties": True}},
        "unsupported_parameter",
        "structured_outputs.disable_additional_properties",
    ),
    (
        {"structured_outputs": {"structural_tag": TAGS | {"triggers": ["<g"]}}},
        "invalid_value",
        "structured_outputs.structural_tag.structures[0].begin",
    ),
    ({"guided_json": S, "guided_regex": "a"}, "conflicting_parameters", "guided_regex"),
    ({"response_format": NAMED, "grammar": GBNF}, "conflicting_parameters", "grammar"),
    ({"structured_outputs": {"json": S, "regex": "a"}}, "conflicting_parameters", "structured_outputs.regex"),
]


@pytest.mark.parametrize(("fields", "code", "param"), ERRORS, ids=lambda value: str(value)[:40] if type(value) is dict else value)
def test_what_is_wrong_is_refused_by_its_name(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert param in caught.value.message


def test_two_ways_at_once_are_named_as_they_were_written() -> None:
    with pytest.raises(ApiError, match=r"'structured_outputs' and 'guided_json'"):
        read(structured_outputs={"json": S}, guided_json=S)


async def test_the_request_can_be_looked_at_and_explained() -> None:
    """Its timeline names the kind of form, and nothing of the form itself."""
    app = make_app(FakeEngine(says("1")))
    made = (await ask(app, "POST", "/v1/chat/completions", chat_body(response_format=NAMED))).json()
    for path in (f"/v1/requests/{made['id']}", f"/v1/requests/{made['id']}/explanation"):
        reply = await ask(app, "GET", path)
        assert reply.status == 200, reply.body
        (held,) = [moment for moment in reply.json()["timeline"] if moment["what"] == "held_to"]
        assert held["kind"] == "schema"
        assert "properties" not in reply.body.decode()
