"""Tools with the official OpenAI client, the real server and the default model, which has no tools of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jsonschema_rs
import pytest
from openai import OpenAI

from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 3, "maxLength": 24},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
NOTE = {
    "type": "object",
    "properties": {"note": {"type": "string", "minLength": 40, "maxLength": 60}},
    "required": ["note"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"weather": CITY, "remember": NOTE}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "The weather of a city.", "parameters": CITY}},
    {"type": "function", "function": {"name": "remember", "description": "Keeps a note.", "parameters": NOTE}},
]
QUESTION: Any = [{"role": "user", "content": "What will the weather be in Rome?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[PoiseServer]:
    # Without drafts a request asked twice is computed in the same passes, and says the same to the last digit.
    started = PoiseServer.start("--set", "levels.crashes_max=100", "--set", "speculation.max_streams=0")
    yield started
    assert started.stop() == 0


@pytest.fixture
def client(server: PoiseServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="alice", max_retries=0, timeout=120) as made:
        yield made


@dataclass
class Said:
    """What a stream has said."""

    content: str = ""
    reason: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)


def streamed(client: OpenAI, on_arguments: Callable[[], None] = lambda: None, **asked: Any) -> Said:
    said = Said()
    with client.chat.completions.create(model="default", stream=True, **asked) as stream:
        for chunk in stream:
            (choice,) = chunk.choices
            said.content += choice.delta.content or ""
            said.reason = choice.finish_reason or said.reason
            for call in choice.delta.tool_calls or []:
                assert call.function is not None
                if call.id:
                    assert call.index == len(said.calls)
                    said.calls.append({"id": call.id, "name": call.function.name or "", "arguments": ""})
                said.calls[call.index]["arguments"] += call.function.arguments or ""
                if call.function.arguments:
                    on_arguments()
    return said


@pytest.mark.parametrize("seed", range(6))
def test_what_is_required_comes_and_is_valid_streamed_or_not(client: OpenAI, seed: int) -> None:
    """At temperature 1: a declared function, arguments by its schema; a stream of the same seed says the same."""
    asked: Any = {"messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "seed": seed, "max_tokens": 400}
    asked |= {"parallel_tool_calls": seed % 2 == 0}
    client.chat.completions.create(
        model="default", **asked | {"max_tokens": 1}
    )  # then both find the same cells, to the last digit
    whole = client.chat.completions.create(model="default", **asked).choices[0]
    calls = whole.message.tool_calls or []
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", None)
    assert len(calls) == 1 if seed % 2 else calls
    for call in calls:
        assert call.type == "function"
        jsonschema_rs.validate(SCHEMAS[call.function.name], json.loads(call.function.arguments))
    said = streamed(client, **asked)
    assert (said.content, said.reason) == ("", "tool_calls")
    assert [(call["name"], call["arguments"]) for call in said.calls] == [
        (call.function.name, call.function.arguments) for call in calls if call.type == "function"
    ]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_function_by_name_is_the_one_that_is_called(client: OpenAI, name: str) -> None:
    """Once, whatever was asked."""
    choice: Any = {"type": "function", "function": {"name": name}}
    said = streamed(client, messages=QUESTION, tools=TOOLS, tool_choice=choice, seed=3)
    (call,) = said.calls
    assert call["name"] == name
    jsonschema_rs.validate(SCHEMAS[name], json.loads(call["arguments"]))


def test_left_to_itself_the_model_may_talk_or_call(client: OpenAI) -> None:
    """And is told of nothing where nothing is to be called."""
    for choice in ("auto", "none"):
        answer = client.chat.completions.create(
            model="default", messages=QUESTION, tools=TOOLS, tool_choice=choice, seed=1, max_tokens=24
        )
        message = answer.choices[0].message
        assert message.content or (choice == "auto" and message.tool_calls)
    plain = client.chat.completions.create(model="default", messages=QUESTION, max_tokens=1)
    assert answer.usage is not None
    assert plain.usage is not None
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens


def turns(client: OpenAI, on_arguments: Callable[[int], None] = lambda n: None) -> list[Any]:
    """Seven turns of calls by name, and what became of them."""
    messages: list[Any] = list(QUESTION)
    for n in range(7):
        name = list(SCHEMAS)[n % 2]
        said = streamed(
            client,
            lambda n=n: on_arguments(n),  # type: ignore[misc]
            messages=messages,
            tools=TOOLS,
            tool_choice={"type": "function", "function": {"name": name}},
            temperature=0,
        )
        (call,) = said.calls
        function = {"name": call["name"], "arguments": call["arguments"]}
        messages.append(
            {"role": "assistant", "content": None, "tool_calls": [{"id": f"call_{n}", "type": "function", "function": function}]}
        )
        messages.append({"role": "tool", "tool_call_id": f"call_{n}", "content": f"Done, {n + 20}."})
        messages.append({"role": "user", "content": "And then?"})
    return messages


def test_an_engine_that_dies_in_the_middle_of_a_call_changes_nothing(client: OpenAI, server: PoiseServer) -> None:
    """Seven turns are the same, word for word, with a kill in the fourth."""
    expected = turns(client)
    killed: list[int] = []

    def kill(n: int) -> None:
        if n == 3 and not killed:
            killed.append(server.engine().pid)
            server.engine().kill()

    assert turns(client, kill) == expected
    assert killed
    assert server.engine().pid != killed[0]
    assert server.get("/health")[1]["restarts"] == 1
