"""OpenAI's format: what it has a word for is sent, what it has none for is named; answers are read however they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.models.remote.events import Called, Delta, Ended, Event, Failed, Used, failure_of
from poise.gateway.models.remote.openai import Events, body
from poise.gateway.request.generate import Generate
from poise.gateway.text.answers import EntryKind
from tests.egress.cloud import ROLE, USAGE, delta
from tests.gateway.models.remote.asking import ALL, CALLED, CLOCK, WEATHER, chat, completion

TEXT, REASONING, ARGUMENTS = EntryKind.TEXT, EntryKind.REASONING, EntryKind.CALL_ARGUMENTS
PLAIN = {"model": "big", "stream": True, "stream_options": {"include_usage": True}}


def sent(request: Generate, can: frozenset[str] = ALL, max_tokens: int | None = None) -> tuple[str, dict[str, Any], list[str]]:
    path, data, without = body(request, "big", stream=True, max_tokens=max_tokens, can=can)
    return path, json.loads(data), without


def said(request: Generate, can: frozenset[str] = ALL, max_tokens: int | None = None) -> dict[str, Any]:
    """What is sent beside the messages and what every request has."""
    found = sent(request, can, max_tokens)[1]
    return {name: value for name, value in found.items() if name not in PLAIN and name != "messages"}


def test_a_conversation_is_sent_as_it_came() -> None:
    path, found, without = sent(chat(*CALLED))
    assert (path, without) == ("/chat/completions", [])
    system, user, assistant, first, second, last = found["messages"]
    assert system == {"role": "system", "content": "be brief"}
    assert user == {"role": "user", "content": "weather?", "name": "ann"}
    assert (assistant["content"], assistant["reasoning_content"]) == (None, "hm")
    assert [call["id"] for call in assistant["tool_calls"]] == [first["tool_call_id"], second["tool_call_id"]]
    assert assistant["tool_calls"][1]["function"] == {"name": "clock", "arguments": "now"}
    assert (first["content"], last) == ("sunny", {"role": "user", "content": "thanks"})
    assert {name: value for name, value in found.items() if name != "messages"} == PLAIN | {"top_k": 40, "min_p": 0.05}
    less, named = sent(chat(*CALLED), frozenset())[1:]
    assert ("hm" in str(less), named) == (False, ["messages.reasoning_content"])
    assert sent(chat({"role": "developer", "content": "x"}, "y"))[1]["messages"][0]["role"] == "system"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "top_p": 0.9}),
        ({"presence_penalty": 1, "frequency_penalty": -1}, {"presence_penalty": 1, "frequency_penalty": -1}),
        ({"seed": 7, "stop": ["a", "b", "c", "d", "e"]}, {"seed": 7, "stop": ["a", "b", "c", "d"]}),
        ({"n": 3, "logprobs": True, "top_logprobs": 2}, {"n": 3, "logprobs": True, "top_logprobs": 2}),
        ({"top_p": 0}, {"temperature": 0}),
        ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "auto"}),
        ({"tools": [WEATHER], "tool_choice": "none"}, {}),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": False},
            {"tools": [WEATHER, CLOCK], "tool_choice": "required", "parallel_tool_calls": False},
        ),
        (
            {"tools": [WEATHER, CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {
                "tools": [WEATHER],
                "tool_choice": {"type": "function", "function": {"name": "weather"}},
                "parallel_tool_calls": False,
            },
        ),
        (
            {
                "tools": [WEATHER, CLOCK],
                "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},
            },
            {"tools": [WEATHER], "tool_choice": "auto"},
        ),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
        (
            {"structured_outputs": {"json": {"type": "object"}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}},
        ),
    ],
)
def test_what_the_format_has_words_for(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of a server that can do what OpenAI's can. What was left out is left out."""
    found = said(chat(**fields), frozenset({"tools", "structured", "logprobs", "choices"}))
    for tool in found.get("tools", ()):
        if tool["function"]["name"] == "clock":
            assert tool["function"].pop("parameters") == {"type": "object", "properties": {}}
    if "response_format" in found and "json_schema" in found["response_format"]:
        assert found["response_format"]["json_schema"].pop("strict") is False
    assert found == expected


def test_what_only_some_servers_know() -> None:
    """Is sent to these, and is named for others, where somebody has asked for it."""
    fields = {"top_k": 7, "min_p": 0.2, "repetition_penalty": 1.5, "min_tokens": 3, "ignore_eos": True}
    assert said(chat(**fields)) == fields
    assert sent(chat(**fields), frozenset())[2] == list(fields)
    assert sent(chat(), frozenset())[2] == []
    wish = {"reasoning_effort": "high", "thinking_token_budget": 9, "chat_template_kwargs": {"a": 1}, "logit_bias": {"3": 1}}
    assert said(chat(reasoning_effort="high"), frozenset({"reasoning"})) == {"reasoning_effort": "high"}
    names = ["logit_bias", "thinking_token_budget", "chat_template_kwargs"]
    assert sent(chat(**wish))[2] == names
    assert sorted(sent(chat(**wish), frozenset())[2]) == sorted([*names, "reasoning_effort"])
    assert said(chat(), frozenset(), 5) == {"max_tokens": 5}
    assert said(chat(), frozenset({"reasoning"}), 5) == {"max_completion_tokens": 5}


def test_prompts_are_sent_to_be_continued() -> None:
    request = completion(["a", "b"], n=2, logprobs=3, stop="x", seed=1)
    path, found, _ = sent(request, frozenset({"completions"}), 9)
    assert path == "/completions"
    assert found == PLAIN | {"prompt": ["a", "b"], "n": 2, "logprobs": 3, "stop": ["x"], "seed": 1, "max_tokens": 9}
    assert sent(completion("a", suffix="z"), frozenset())[1] == PLAIN | {"prompt": "a", "suffix": "z"}


def test_strict_schemas_are_said_to_be() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
    form = said(chat(guided_json=schema), frozenset())["response_format"]["json_schema"]
    assert form == {"name": "answer", "schema": schema, "strict": True}


def stream(*values: Any, done: bool = True) -> bytes:
    texts = [*(json.dumps(value) for value in values), *(["[DONE]"] if done else [])]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def read(data: bytes, n_choices: int = 1, cuts: Sequence[int] = ()) -> list[Event]:
    """In pieces that belong together where their cuts are."""
    events, found = Events(n_choices), list[Event]()
    places = [0, *sorted(cuts), len(data)]
    for a, b in pairwise(places):
        found += events.feed(data[a:b])
    return found + events.end()


WHOLE = stream(
    ROLE, {"choices": []}, delta(reasoning_content="hm"), delta("héllo"), delta(" you"), delta(finish="stop"),
    {"choices": [], "usage": USAGE | {"completion_tokens_details": {"reasoning_tokens": 1}}},
)  # fmt: skip
TOLD = [Delta(0, REASONING, "hm"), Delta(0, TEXT, "héllo"), Delta(0, TEXT, " you"), Ended(0, "stop"), Used(10, 4, 3, 1)]


@given(st.lists(st.integers(0, len(WHOLE)), max_size=12))
def test_an_answer_is_read_however_it_is_cut(cuts: list[int]) -> None:
    """A role alone, and a chunk without choices, are nothing."""
    assert read(WHOLE, cuts=cuts) == TOLD


def call(index: int | None, id: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}])


@pytest.mark.parametrize(
    "chunks",
    [
        [call(0, "a", "f", ""), call(0, None, None, "{"), call(0, None, None, "}"), call(1, "b", "g", "{}")],
        [call(0, "a", "f", "{"), call(0, "a", "f", "}"), call(0, "b", "g", "{}")],
        [call(None, "a", "f", "{}"), call(None, "b", "g", {})],
    ],
    ids=["OpenAI", "all numbered 0", "whole, without numbers"],
)
def test_calls_are_told_apart(chunks: list[Any]) -> None:
    found = read(stream(*chunks, delta(finish="tool_calls")))
    texts = [event for event in found if isinstance(event, Called) or (isinstance(event, Delta) and event.kind is ARGUMENTS)]
    assert [event for event in texts if isinstance(event, Called)] == [Called(0, "f", "a"), Called(0, "g", "b")]
    assert "".join(event.text for event in texts if isinstance(event, Delta)) == "{}{}"
    assert found[-1] == Ended(0, "stop")


def test_calls_that_cannot_be_told_apart_are_no_answer() -> None:
    for chunks in ([call(0, "a", "f", "{"), call(1, "b", "g", "{"), call(0, None, None, "}")], [call(0, "a", None, "{")]):
        found = read(stream(*chunks))
        assert isinstance(found[-1], Failed)
        assert found[-1].code == "upstream_broken"


def test_log_probabilities_have_their_places() -> None:
    """Of a chat and of a completion."""
    token = {"token": "hé", "logprob": -0.5, "bytes": [104, 195, 169], "top_logprobs": [{"token": "x", "logprob": -1.0}]}
    first = {"index": 0, "delta": {"content": "hé"}, "logprobs": {"content": [token]}}
    more = {"index": 0, "delta": {"content": "llo"}, "logprobs": {"content": [token | {"token": "llo", "bytes": None}]}}
    found = read(stream({"choices": [first]}, {"choices": [more]}, delta(finish="length")))
    assert found[-1] == Ended(0, "length")
    scored = [one for event in found if isinstance(event, Delta) for one in event.logprobs]
    assert [(one.piece, one.logprob, one.top, one.offset, one.end) for one in scored] == [
        ("hé".encode(), -0.5, ((b"x", -1.0),), 0, 2),
        (b"llo", -0.5, ((b"x", -1.0),), 2, 5),
    ]
    lists = {"tokens": ["a", "b"], "token_logprobs": [None, -2.0], "top_logprobs": [None, {"c": -3.0}], "text_offset": [0, 1]}
    (event, _) = read(stream({"choices": [{"index": 0, "text": "ab", "logprobs": lists, "finish_reason": "stop"}]}))
    assert isinstance(event, Delta)
    assert [(one.piece, one.top, one.offset, one.end) for one in event.logprobs] == [
        (b"a", (), 0, 1),
        (b"b", ((b"c", -3.0),), 1, 2),
    ]


@pytest.mark.parametrize(
    ("data", "code", "n_before"),
    [
        (b"", "upstream_incomplete", 0),
        (stream(ROLE, done=False), "upstream_incomplete", 0),
        (stream(ROLE, delta("one"), done=False), "upstream_incomplete", 1),
        (b"<html>log in</html>", "upstream_incomplete", 0),
        (b'{"error": {"message": "no", "type": "bad", "code": 503}}', "bad", 0),
        (b' {"error": "no"}', "upstream_error", 0),
        (b'{"detail": "no"}', "upstream_error", 0),
        (b'{"truncated', "upstream_broken", 0),
        (stream(delta("one"), {"error": {"message": "no", "code": "engine"}}), "engine", 1),
        (b'event: error\ndata: {"error": {"message": "no", "code": "x"}}\n\n', "x", 0),
        (stream(delta("one"), delta(finish="error")), "upstream_error", 1),
        (b"data: {\n\n", "upstream_broken", 0),
        (b"data: [1]\n\n", "upstream_broken", 0),
        (b'data: {"choices": [{"index": 0, "delta": {"content": 5}}]}\n\n', "upstream_broken", 0),
        (b'data: {"choices": [{"index": 1, "delta": {"content": "a"}}]}\n\n', "upstream_broken", 0),
        (b'data: {"choices": [{"index": -1, "delta": {"content": "a"}}]}\n\n', "upstream_broken", 0),
        (b'data: {"usage": {"completion_tokens": -5}}\n\n', "upstream_broken", 0),
        (b"data: " + b"[" * 100_000 + b"\n\n", "upstream_broken", 0),
        (stream(delta("one")) + b"x" * (2 << 20), "", 2),
        (stream(delta("one"), done=False) + b"x" * (2 << 20), "upstream_too_large", 1),
        (b"{" + b" " * (2 << 20), "upstream_too_large", 0),
    ],
)
def test_what_is_no_answer_fails_once(data: bytes, code: str, n_before: int) -> None:
    """With what came before it, and nothing afterwards."""
    events = Events()
    found = events.feed(data) + events.end()
    failures = [event for event in found if isinstance(event, Failed)]
    assert [failed.code for failed in failures] == ([code] if code else [])
    assert len(found) == n_before + len(failures)
    assert events.is_over
    assert events.feed(stream(delta("more"))) + events.end() == []


def test_a_whole_answer_is_one_too() -> None:
    """Of a server that does not stream."""
    whole = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    assert read(json.dumps(whole).encode()) == [Delta(0, TEXT, "hi"), Ended(0, "stop"), Used(10, 4, 3)]


def test_choices_end_each_on_its_own() -> None:
    """Once, whatever is repeated; with `[DONE]` at the latest."""
    chunks = [delta("a"), delta(finish="length"), delta(finish="stop")]
    chunks[0]["choices"] += [{"index": 1, "delta": {"content": "b"}}]
    found = read(stream(*chunks), n_choices=2)
    assert found == [Delta(0, TEXT, "a"), Delta(1, TEXT, "b"), Ended(0, "length"), Ended(1, "stop")]


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_any_bytes_are_read_to_an_end(parts: list[bytes]) -> None:
    events = Events()
    found = [event for part in parts for event in events.feed(b"data: " + part + b"\n\n")] + events.end()
    assert events.is_over
    assert isinstance(found[-1], Failed | Ended)


@pytest.mark.parametrize(
    ("body_", "failed"),
    [
        (b'{"error": {"message": "m", "type": "t", "code": "c"}}', Failed("c", "m", 400)),
        (b'{"error": {"message": "m", "type": "t", "code": null}}', Failed("t", "m", 400)),
        (b'{"message": "m"}', Failed("upstream_error", "m", 400)),
        (b'{"error": "m"}', Failed("upstream_error", "m", 400)),
        (b"<html>", Failed("upstream_error", "the server gave no reason", 400)),
        (b"[" * 100_000, Failed("upstream_error", "the server gave no reason", 400)),
        (b'{"error": {"message": "%b"}}' % (b"m" * 5000), Failed("upstream_error", "m" * 1000, 400)),
    ],
)
def test_what_errors_say(body_: bytes, failed: Failed) -> None:
    assert failure_of(body_, 400) == failed
