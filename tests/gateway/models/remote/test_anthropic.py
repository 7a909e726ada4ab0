"""Anthropic's format: turns that alternate, calls and results as blocks, and a stream of typed events."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.models.remote.anthropic import Events, body
from poise.gateway.models.remote.events import Called, Delta, Ended, Event, Failed, Used
from poise.gateway.request.generate import Generate
from poise.gateway.text.answers import EntryKind
from tests.gateway.models.remote.asking import CALLED, CLOCK, WEATHER, chat

TEXT, REASONING, ARGUMENTS = EntryKind.TEXT, EntryKind.REASONING, EntryKind.CALL_ARGUMENTS
ALL = frozenset({"tools", "structured", "reasoning", "sampling", "continued"})
NOTHING: frozenset[str] = frozenset()


def sent(request: Generate, can: frozenset[str] = ALL, max_tokens: int = 5000) -> tuple[dict[str, Any], list[str]]:
    path, data, without = body(request, "opus", stream=True, max_tokens=max_tokens, can=can)
    assert path == "/messages"
    return json.loads(data), without


def said(request: Generate, can: frozenset[str] = NOTHING, max_tokens: int = 5000) -> dict[str, Any]:
    """What is sent beside the messages and what every request has."""
    found = sent(request, can, max_tokens)[0]
    return {name: value for name, value in found.items() if name not in ("model", "stream", "max_tokens", "messages", "top_k")}


def test_turns_alternate() -> None:
    """Systems stand before them; results come first in theirs; arguments are objects."""
    found, without = sent(chat(*CALLED, "again", {"role": "developer", "content": "and polite"}))
    assert (found["system"], found["max_tokens"], found["stream"]) == ("be brief\n\nand polite", 5000, True)
    user, assistant, answer = found["messages"]
    assert user == {"role": "user", "content": [{"type": "text", "text": "weather?"}]}
    assert assistant == {
        "role": "assistant",
        "content": [
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}},
            {"type": "tool_use", "id": "call_2_1", "name": "clock", "input": {"arguments": "now"}},
        ],
    }
    assert answer == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "call_2_1", "content": "noon"},
            {"type": "text", "text": "thanks"},
            {"type": "text", "text": "again"},
        ],
    }
    assert without == ["messages.name", "messages.reasoning_content", "min_p"][:2]
    assert found["tool_choice"] == {"type": "none"}
    assert [tool["name"] for tool in found["tools"]] == ["weather", "clock"]


def test_an_answer_goes_on_with_the_last_message() -> None:
    found, _ = sent(chat("a", {"role": "assistant", "content": "well, "}, continue_final_message=True))
    assert found["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "well,"}]}


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
WEATHER_TOOL = {
    "name": "weather", "description": "How it is.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}  # fmt: skip
CLOCK_TOOL = {"name": "clock", "input_schema": {"type": "object", "properties": {}}, "strict": True}


@pytest.mark.parametrize(
    ("fields", "expected", "without"),
    [
        ({}, {}, []),
        ({"temperature": 0.5}, {"temperature": 0.5}, []),
        ({"temperature": 1.5}, {"temperature": 1.0}, ["temperature"]),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5}, ["top_p"]),
        ({"top_p": 0.9}, {"top_p": 0.9}, []),
        ({"top_p": 0}, {"temperature": 0.0}, []),
        ({"top_k": 5, "min_p": 0.3}, {}, ["top_k", "min_p"]),
        ({"stop": ["a", "\n"]}, {"stop_sequences": ["a"]}, []),
        ({"seed": 1, "logit_bias": {"3": 1}, "presence_penalty": 1}, {}, ["presence_penalty", "logit_bias", "seed"]),
        ({"min_tokens": 3, "ignore_eos": True}, {}, ["min_tokens", "ignore_eos"]),
        ({"reasoning_effort": "high", "thinking_token_budget": 9}, {}, ["reasoning_effort", "thinking_token_budget"]),
        ({"chat_template_kwargs": {"a": 1}}, {}, ["chat_template_kwargs"]),
        ({"tools": [WEATHER, CLOCK]}, {"tools": [WEATHER_TOOL, CLOCK_TOOL], "tool_choice": {"type": "auto"}}, []),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": False},
            {"tools": [WEATHER_TOOL, CLOCK_TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
            [],
        ),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tools": [WEATHER_TOOL], "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}},
            [],
        ),
        ({"tools": [CLOCK], "tool_choice": "none"}, {"tools": [CLOCK_TOOL], "tool_choice": {"type": "none"}}, []),
        ({"guided_json": SCHEMA}, {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}, []),
    ],
)
def test_what_the_format_has_words_for(fields: dict[str, Any], expected: dict[str, Any], without: list[str]) -> None:
    assert said(chat(**fields)) == expected
    assert sent(chat(**fields), NOTHING)[1] == without


@pytest.mark.parametrize(
    ("fields", "thinking", "effort", "without"),
    [
        ({}, None, None, []),
        ({"enable_thinking": True}, {"type": "enabled", "budget_tokens": 2500}, None, []),
        ({"enable_thinking": False}, {"type": "disabled"}, None, []),
        ({"reasoning_effort": "none"}, {"type": "disabled"}, None, []),
        ({"reasoning_effort": "low"}, None, "low", []),
        ({"reasoning_effort": "much"}, None, None, ["reasoning_effort"]),
        ({"thinking_token_budget": 0}, {"type": "disabled"}, None, []),
        ({"thinking_token_budget": -1}, {"type": "enabled", "budget_tokens": 2500}, None, []),
        ({"thinking_token_budget": 9}, {"type": "enabled", "budget_tokens": 1024}, None, []),
        ({"thinking": {"type": "enabled", "budget_tokens": 9000}}, {"type": "enabled", "budget_tokens": 4999}, None, []),
        ({"thinking_token_budget": 9, "max_tokens": 1000}, None, None, ["thinking_token_budget"]),
        ({"enable_thinking": True, "tools": [CLOCK], "tool_choice": "required"}, None, None, ["enable_thinking"]),
    ],
)
def test_thinking(fields: dict[str, Any], thinking: Any, effort: str | None, without: list[str]) -> None:
    """Where it can be had; beside it, there is no temperature."""
    request = chat(temperature=0.5, **fields)
    found, named = sent(request, frozenset({"reasoning"}), request.max_tokens or 5000)
    assert (found.get("thinking"), found.get("output_config", {}).get("effort")) == (thinking, effort)
    is_on = (thinking or {}).get("type") == "enabled"
    assert found.get("temperature") == (None if is_on else 0.5)
    assert named == without + (["temperature"] if is_on else [])


def stream(*events: dict[str, Any]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def block(index: int, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": content}


def part(index: int, kind: str, **content: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **content}}


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def end(reason: str, **usage: int) -> dict[str, Any]:
    return {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}


START = {
    "type": "message_start",
    "message": {"content": [], "usage": {"input_tokens": 12, "cache_read_input_tokens": 700, "cache_creation_input_tokens": 5,
                                         "output_tokens": 1}},
}  # fmt: skip
PING, OVER = {"type": "ping"}, {"type": "message_stop"}
WHOLE = stream(
    START, PING, block(0, type="thinking", thinking="", signature=""), part(0, "thinking_delta", thinking="hm"),
    part(0, "signature_delta", signature="abc"), stop(0), block(1, type="text", text=""), part(1, "text_delta", text="hé"),
    stop(1), block(2, type="tool_use", id="toolu_1", name="f", input={}), part(2, "input_json_delta", partial_json=""),
    part(2, "input_json_delta", partial_json='{"a": '), part(2, "input_json_delta", partial_json="1}"), stop(2),
    block(3, type="tool_use", id="toolu_2", name="g", input={}), stop(3), end("tool_use", output_tokens=57), OVER,
)  # fmt: skip
TOLD: list[Event] = [
    Used(717, 700, 1), Delta(0, REASONING, "hm"), Delta(0, TEXT, "hé"), Called(0, "f", "toolu_1"),
    Delta(0, ARGUMENTS, '{"a": '), Delta(0, ARGUMENTS, "1}"), Called(0, "g", "toolu_2"), Delta(0, ARGUMENTS, "{}"),
    Used(717, 700, 57), Ended(0, "stop"),
]  # fmt: skip


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_an_answer_is_read_however_it_is_cut(cuts: list[int]) -> None:
    """A beginning, a ping, a signature are nothing; a call without arguments has an empty object."""
    events, found, places = Events(), list[Event](), [0, *sorted(cuts), len(WHOLE)]
    for a, b in pairwise(places):
        found += events.feed(WHOLE[a:b])
    assert found + events.end() == TOLD
    assert events.is_over


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("end_turn", "stop"), ("stop_sequence", "stop"), ("pause_turn", "stop"), ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"), ("refusal", "content_filter"), ("new_reason", "stop"),
    ],
)  # fmt: skip
def test_how_it_ended(reason: str, told: str) -> None:
    assert Events().feed(stream(end(reason), OVER))[-1] == Ended(0, told)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (stream(START), "upstream_incomplete"),
        (stream({"type": "error", "error": {"type": "overloaded_error", "message": "m"}}), "overloaded_error"),
        (b'{"type": "error", "error": {"type": "api_error", "message": "m"}}', "api_error"),
        (b'{"type": "message", "content": []}', "upstream_broken"),
        (b"data: {}\n\ndata: {\n\n", "upstream_broken"),
        (stream(block(0, type="tool_use", id="a", name="")), "upstream_error"),
        (stream(end("end_turn", output_tokens=-1)), "upstream_broken"),
    ],
)
def test_what_is_no_answer_fails_once(data: bytes, code: str) -> None:
    events = Events()
    failures = [event for event in events.feed(data) + events.end() if isinstance(event, Failed)]
    assert [failed.code for failed in failures] == [code]
    assert events.feed(WHOLE) + events.end() == []
