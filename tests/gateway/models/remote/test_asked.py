"""What a request cannot be answered without is known before it is sent; what can be left out is not counted."""

from __future__ import annotations

from typing import Any

import pytest

from poise.config.hybrid import BackendSettings
from poise.gateway.models.remote.asked import answered_calls, capabilities_of, is_strict, needs, schema_of
from poise.gateway.request import structure as s
from poise.gateway.request.generate import Conversation, Generate
from tests.gateway.models.remote.asking import ALL, CALLED, CLOCK, WEATHER, chat, completion

EVERYTHING = sorted(ALL)
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
ASSISTANT = {"role": "assistant", "content": "well"}


def backend(style: str = "openai", capabilities: list[str] = EVERYTHING) -> frozenset[str]:
    url = "https://api.example/v1"
    return capabilities_of(BackendSettings.model_validate({"url": url, "format": style, "capabilities": capabilities}))


@pytest.mark.parametrize(
    ("request_", "needed"),
    [
        (chat(), set()),
        (chat(tools=[WEATHER]), {"tools"}),
        (chat(tools=[WEATHER], tool_choice="none"), set()),
        (chat(*CALLED), {"tools"}),
        (chat(response_format=SCHEMA), {"structured"}),
        (chat(response_format={"type": "json_object"}), {"json_object"}),
        (chat(guided_regex="a+"), {"grammar"}),
        (chat(guided_choice=["a"]), {"grammar"}),
        (chat(grammar='root ::= "a"'), {"grammar"}),
        (chat(logprobs=True), {"logprobs"}),
        (chat(n=2), {"choices"}),
        (chat(max_tokens=0), {"no_output"}),
        (chat(template="faq"), {"template"}),
        (chat("a", ASSISTANT), {"any_turns"}),
        (chat(ASSISTANT, "a"), {"any_turns"}),
        (chat({"role": "system", "content": "a"}), {"any_turns"}),
        (chat("a", ASSISTANT, continue_final_message=True), {"continued"}),
        (chat(add_generation_prompt=False), {"continued"}),
        (chat(temperature=0.1, top_k=3, min_p=0.5, seed=1, reasoning_effort="high", logit_bias={"1": 5}), set()),
        (completion("a"), {"completions"}),
        (completion([1, 2]), {"completions", "token_ids"}),
        (completion(["a", "b"]), {"completions", "choices"}),
        (completion("a", echo=True), {"completions", "echo"}),
    ],
)
def test_what_a_request_needs(request_: Generate, needed: set[str]) -> None:
    assert needs(request_) == needed


def test_what_servers_can_do() -> None:
    """As the operator says, as far as their format has words for it."""
    assert backend() == ALL | {"json_object", "any_turns"}
    assert backend("openai", []) == {"any_turns"}
    assert backend("anthropic") == {"tools", "structured", "reasoning", "sampling", "continued"}
    assert needs(chat(logprobs=True, n=2, tools=[CLOCK])) - backend("anthropic") == {"choices", "logprobs"}
    assert needs(chat(logprobs=True, n=2, tools=[CLOCK])) <= backend()
    never = [chat(guided_regex="a"), completion([1]), completion("a", echo=True), chat(template="faq"), chat(max_tokens=0)]
    assert all(needs(request) - backend(style) for request in never for style in ("openai", "anthropic"))


@pytest.mark.parametrize("schema", [{"type": "object", "properties": {"a": {"const": 1}}}, {}, {"x-guidance": {"a": 1}}])
def test_schemas_come_back_as_they_were(schema: dict[str, Any]) -> None:
    """Without what was added for the grammar's sake."""
    assert schema_of(s.of_schema(schema, "x")) == {name: value for name, value in schema.items() if name != "x-guidance"}
    assert schema_of(s.of_json_object("x")) == {"type": "object"}
    assert schema_of(s.of_regex("a", "x")) is None


@pytest.mark.parametrize(
    ("schema", "strict"),
    [
        ({"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": False}, False),
        ({"type": "object", "properties": {"a": {}}, "required": ["a"]}, False),
        ({"type": "array", "items": {"type": "object"}}, False),
        ({"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": False}]}, False),
        ({"type": "string"}, True),
    ],
)
def test_what_strict_mode_takes(schema: dict[str, Any], strict: bool) -> None:
    assert is_strict(schema) is strict


def test_results_find_their_calls() -> None:
    """By an id that every server takes; where none was given, by their order."""
    older: list[dict[str, Any] | str] = [
        "time and weather?",
        {"role": "assistant", "content": None, "function_call": {"name": "clock", "arguments": "{}"}},
        {"role": "function", "name": "clock", "content": "noon"},
    ]
    prompt = chat(*CALLED, *older).prompt
    assert isinstance(prompt, Conversation)
    messages = answered_calls(prompt.messages)
    calls = [call.id for message in messages for call in message.calls]
    results = [message.tool_call_id for message in messages if message.role == "tool"]
    assert calls == results == ["call_1", "call_2_1", "call_7_0"]
