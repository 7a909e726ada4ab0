"""Structured answers of the real model: valid when they end by themselves, and the same when the engine is killed in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema_rs
import pytest
from openai import BadRequestError, OpenAI

from poise.gateway.supervision.supervisor import ENGINE_COMMAND
from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

TEXT = {"type": "string", "maxLength": 12}
CITY = {"enum": ["London", "Paris", "Rome"]}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"city": CITY, "unit": {"const": "celsius"}}, "required": ["city", "unit"]},
    {"type": "object", "properties": {"a": TEXT, "b": {"type": "integer"}}, "required": ["b"], "additionalProperties": False},
    {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 40}, "minItems": 2, "maxItems": 5},
    {"type": "array", "prefixItems": [TEXT, {"type": "boolean"}], "items": False, "minItems": 2},
    {"enum": ["a", 1, None, {"b": [True]}]},
    {"const": "a rather long constant that nobody has to draw"},
    {"anyOf": [{"type": "integer", "maximum": 99}, CITY]},
    {"allOf": [{"type": "integer", "minimum": 10}, {"maximum": 20}]},
    {"oneOf": [{"type": "null"}, {"type": "boolean"}]},
    {"type": ["boolean", "null"]},
    {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "minLength": 3, "maxLength": 6},
    {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object", "properties": {"x": CITY}, "required": ["x"]}}},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0}, "maxProperties": 3},
    {
        "type": "object",
        "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "name": TEXT},
        "required": ["name", "next"],
        "additionalProperties": False,
    },
]


@pytest.fixture(scope="module")
def server() -> Iterator[PoiseServer]:
    # Without drafts a request asked twice is computed in the same passes, and says the same to the last digit.
    server = PoiseServer.start("--set", "speculation.max_streams=0")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server: PoiseServer) -> OpenAI:
    return OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: OpenAI, seed: int, max_tokens: int = 150, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Describe some place, in JSON."}]
    return client.chat.completions.create(
        model="default", messages=messages, temperature=1.0, seed=seed, max_tokens=max_tokens, **more
    )


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def test_twenty_schemas_at_temperature_one(client: OpenAI) -> None:
    """Whatever ended by itself is valid; what was cut may have had more open than there was room to close."""

    def answer(i: int) -> str:
        choice = ask(client, i, 80, response_format=schema_format(SCHEMAS[i])).choices[0]
        try:
            value = json.loads(choice.message.content)
        except json.JSONDecodeError:
            assert choice.finish_reason == "length"
            return "open"
        assert jsonschema_rs.is_valid(SCHEMAS[i], value), (SCHEMAS[i], value)
        return str(choice.finish_reason)

    with ThreadPoolExecutor(6) as several:
        ends = list(several.map(answer, range(len(SCHEMAS))))
    assert ends.count("stop") >= 14, ends
    assert ends.count("open") <= 2, ends


STORY = {"type": "object", "properties": {"story": {"type": "string"}}, "required": ["story"], "additionalProperties": False}
LONG = {"type": "object", "properties": {"story": {"type": "string", "minLength": 2000}}, "required": ["story"]}


@pytest.mark.parametrize("max_tokens", [12, 20, 40])
def test_an_answer_that_is_cut_is_closed(client: OpenAI, max_tokens: int) -> None:
    """It says that it was cut, and can be read; whole, streamed, and as the argument of a call that was asked for by name."""
    ends = []
    for seed in range(12):
        answer = ask(client, seed, max_tokens, response_format=schema_format(STORY))
        ends.append(answer.choices[0].finish_reason)
        assert jsonschema_rs.is_valid(STORY, json.loads(answer.choices[0].message.content))
        assert answer.usage.completion_tokens <= max_tokens
    assert "length" in ends
    chunks = ask(client, 11, max_tokens, response_format=schema_format(STORY), stream=True)
    said = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.delta.content or "" for choice in said) == answer.choices[0].message.content
    assert said[-1].finish_reason == ends[-1]
    tool: Any = {"type": "function", "function": {"name": "tell", "parameters": STORY}}
    choice: Any = {"type": "function", "function": {"name": "tell"}}
    called = ask(client, 1, max_tokens + 24, tools=[tool], tool_choice=choice).choices[0].message
    (call,) = called.tool_calls
    assert jsonschema_rs.is_valid(STORY, json.loads(call.function.arguments))


def test_what_cannot_be_closed_is_cut_where_it_is(client: OpenAI) -> None:
    answer = ask(client, 1, 20, response_format=schema_format(LONG)).choices[0]
    assert answer.finish_reason == "length"
    assert answer.message.content.startswith('{"story":"')
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.message.content)


def test_the_other_kinds(client: OpenAI) -> None:
    """A choice, a regular expression, GBNF, and forced tokens with their log probabilities."""
    choice = ask(client, 1, extra_body={"structured_outputs": {"choice": ["yes", "no"]}}).choices[0]
    assert choice.message.content in ("yes", "no")
    assert choice.finish_reason == "stop"
    said = ask(client, 2, extra_body={"guided_regex": "[a-c]{5}[0-9]"}).choices[0].message.content
    assert len(said) == 6
    assert said[5].isdigit()
    said = ask(client, 3, extra_body={"grammar": 'root ::= "left" | "right"'}, logprobs=True).choices[0]
    assert said.message.content in ("left", "right")
    assert "".join(entry.token for entry in said.logprobs.content) == said.message.content


def test_a_schema_that_cannot_be_followed_is_refused_by_its_keyword(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(client, 1, response_format=schema_format({"type": "array", "uniqueItems": True}))
    assert caught.value.code == "invalid_schema"
    assert caught.value.param == "response_format.json_schema.schema"
    assert "uniqueItems" in caught.value.message


def test_a_killed_engine_changes_nothing(server: PoiseServer, client: OpenAI) -> None:
    """The same seed gives the same answer, with the engine killed in the middle of one of them."""
    schema = {"type": "array", "items": {"type": "object", "properties": {"n": {"type": "integer"}, "s": TEXT},
              "required": ["n", "s"], "additionalProperties": False}, "minItems": 8, "maxItems": 12}  # fmt: skip
    fields: dict[str, Any] = {"max_tokens": 200, "response_format": schema_format(schema)}
    whole = ask(client, 5, **fields).choices[0].message.content
    texts: list[str] = []
    kill = threading.Event()
    for chunk in ask(client, 5, stream=True, **fields):
        if not chunk.choices:
            continue
        texts.append(chunk.choices[0].delta.content or "")
        if len(texts) > 20 and not kill.is_set():
            kill.set()
            server.child(ENGINE_COMMAND[-1]).kill()
    assert kill.is_set()
    assert "".join(texts) == whole
