"""Tools in requests: every form of them is read alike, and what is wrong is refused by the name of its field."""

from __future__ import annotations

import re
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.refusals import ApiError
from poise.gateway.request.tools import Tool, ToolMode
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, readable, says

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
F: dict[str, Any] = {"name": "f", "description": "d", "parameters": PARAMETERS}
G: dict[str, Any] = {"name": "g"}
TOOLS = [{"type": "function", "function": F}, {"type": "function", "function": G}]
SEARCH = {"type": "web_search_preview", "user_location": None}
BOTH = (("f", "g"), ToolMode.AUTO, (), True)


def read(**fields: Any) -> Generate:
    return RequestParser(Settings()).chat(chat_body(**fields))


FORMS: dict[str, tuple[dict[str, Any], tuple[tuple[str, ...], str, tuple[str, ...], bool]]] = {
    "nothing": ({}, ((), "auto", (), True)),
    "an empty list": ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": False}, ((), "auto", (), False)),
    "nulls": ({"tools": None, "tool_choice": None, "parallel_tool_calls": None, "functions": None}, ((), "auto", (), True)),
    "tools": ({"tools": TOOLS}, BOTH),
    "flat tools": ({"tools": [{"type": "function", **F}, {"type": "function", **G}]}, BOTH),
    "tools without a type": ({"tools": [{"function": F}, {"function": G}]}, BOTH),
    "strict, null": ({"tools": [{"type": "function", "function": F | {"strict": None}}, TOOLS[1]]}, BOTH),
    "what is not run here": ({"tools": [SEARCH, *TOOLS, {"type": "mcp", "server_url": "x"}]}, BOTH),
    "none": ({"tools": TOOLS, "tool_choice": "none"}, (("f", "g"), "none", (), True)),
    "required": ({"tools": TOOLS, "tool_choice": "required"}, (("f", "g"), "required", (), True)),
    "any": ({"tools": TOOLS, "tool_choice": "any"}, (("f", "g"), "required", (), True)),
    "one at a time": ({"tools": TOOLS, "parallel_tool_calls": False}, (("f", "g"), "auto", (), False)),
    "named": (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}},
        (("f", "g"), "required", ("g",), False),
    ),
    "named, flat": ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "g"}}, (("f", "g"), "required", ("g",), False)),
    "allowed": (
        {
            "tools": TOOLS,
            "tool_choice": {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}] * 2},
            },
        },
        (("f", "g"), "required", ("g",), True),
    ),
    "allowed, flat": (
        {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}},
        (("f", "g"), "auto", ("f",), True),
    ),
    "functions": ({"functions": [F, G]}, (("f", "g"), "auto", (), False)),
    "functions, none": ({"functions": [F, G], "function_call": "none"}, (("f", "g"), "none", (), False)),
    "functions, named": ({"functions": [F, G], "function_call": {"name": "f"}}, (("f", "g"), "required", ("f",), False)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(form: str) -> None:
    """To the tools, what an answer may be, which may be called, and whether several times."""
    fields, expected = FORMS[form]
    use = read(**fields).tools
    assert (tuple(tool.name for tool in use.tools), use.mode, use.allowed, use.parallel) == expected
    if use.tools:
        assert use.tools[0] == Tool("f", "d", PARAMETERS, False, use.tools[0].param)


def test_what_the_model_is_told_and_may_call() -> None:
    """With `none` it is told of nothing; where only some are allowed, of all, so that the prompt stays the same."""
    for choice, offered, may_call in (("none", 0, 0), ("required", 2, 2), ({"type": "function", "name": "g"}, 2, 1)):
        request = read(tools=TOOLS, tool_choice=choice)
        assert isinstance(request.prompt, Conversation)
        assert (len(request.prompt.rendering.tools), len(request.tools.callable)) == (offered, may_call)
        assert bool(request.tools) is bool(offered)


NESTED: Any = {}
for _ in range(70):
    NESTED = {"a": NESTED}
CHOICE = "tool_choice"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tools": {}}, "tools"),
    ({"tools": "f"}, "tools"),
    ({"tools": ["f"]}, "tools[0]"),
    ({"tools": [{"type": 7, "function": F}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "get weather"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "x" * 129}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": 7}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "name": "f", "description": 7}]}, "tools[0].description"),
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
        "tools[0].function.parameters.type",
    ),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": "yes"}}]}, "tools[0].function.strict"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
    ({"tools": [{"type": "function", "function": F | {"description": "x" * 300_000}}]}, "tools"),
    ({"tools": [{"type": "function", "function": F | {"parameters": NESTED}}]}, "tools"),
    ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
    ({"tools": TOOLS, CHOICE: "sometimes"}, CHOICE),
    ({"tools": TOOLS, CHOICE: 7}, CHOICE),
    ({"tools": TOOLS, CHOICE: {"type": "function", "function": {"name": "h"}}}, CHOICE),
    ({"tools": TOOLS, CHOICE: {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"tools": TOOLS, CHOICE: {"type": "function"}}, "tool_choice.name"),
    ({"tools": [SEARCH, *TOOLS], CHOICE: {"type": "web_search_preview"}}, "tool_choice.type"),
    ({"tools": TOOLS, CHOICE: {"type": "allowed_tools", "tools": []}}, "tool_choice.tools"),
    ({"tools": TOOLS, CHOICE: {"type": "allowed_tools", "mode": "never", "tools": [G]}}, "tool_choice.mode"),
    ({"tools": TOOLS, CHOICE: {"type": "allowed_tools", "tools": [{"name": "h"}]}}, CHOICE),
    ({CHOICE: "required"}, CHOICE),
    ({"tools": [SEARCH], CHOICE: "required"}, CHOICE),
    ({"tools": [], CHOICE: {"type": "function", "name": "f"}}, CHOICE),
    ({"tools": TOOLS, "functions": [F]}, "functions"),
    ({"tools": TOOLS, "function_call": "auto"}, "function_call"),
    ({"functions": [F], CHOICE: "auto"}, "functions"),
    ({"functions": [F, F]}, "functions[1].name"),
    ({"functions": [F], "function_call": {"name": "g"}}, "function_call"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG, ids=[f"{i} {param}" for i, (_, param) in enumerate(WRONG)])
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """With the value, the limit and what to do."""
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert param in caught.value.message


def turn(**call: Any) -> list[dict[str, Any]]:
    """A conversation with one call."""
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": [call]}]


CALLS: list[tuple[dict[str, Any], tuple[str, str, str]]] = [
    ({"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}, ("a", "f", "{}")),
    ({"id": "a", "function": {"name": "f", "arguments": {"city": "Röm"}}}, ("a", "f", '{"city": "Röm"}')),
    ({"function": {"name": "f", "arguments": "not JSON"}}, ("", "f", "not JSON")),
    ({"id": None, "function": {"name": "f", "arguments": None}}, ("", "f", "")),
    ({"id": "a", "index": 0, "name": "f", "arguments": "{}"}, ("a", "f", "{}")),
]


@pytest.mark.parametrize(("call", "expected"), CALLS)
def test_calls_of_earlier_turns_are_read(call: dict[str, Any], expected: tuple[str, str, str]) -> None:
    """As clients write them; what models have written as arguments is taken as it is."""
    prompt = read(messages=turn(**call)).prompt
    assert isinstance(prompt, Conversation)
    (made,) = prompt.messages[1].calls
    assert (made.id, made.name, made.arguments) == expected
    assert prompt.messages[1].content == ""


@pytest.mark.parametrize(
    ("call", "where"),
    [
        ({"id": 7, "function": {"name": "f"}}, ".id"),
        ({"id": "a"}, ".function"),
        ({"id": "a", "function": {"arguments": "{}"}}, ".function.name"),
        ({"id": "a", "function": {"name": "f", "arguments": NESTED}}, ".function.arguments"),
    ],
)
def test_calls_that_are_none_are_refused(call: dict[str, Any], where: str) -> None:
    """Under the name of their place."""
    with pytest.raises(ApiError) as caught:
        read(messages=turn(**call))
    assert caught.value.param == f"messages[1].tool_calls[0]{where}"


@pytest.mark.parametrize("policy", ["reject", "trim", "summarize"])
async def test_the_model_is_told_of_tools_calls_and_results(policy: str) -> None:
    """Under every context policy; a model whose template knows no tools in words of our own."""
    engine = FakeEngine(says("x"))
    app = make_app(engine)
    messages = [
        *turn(id="a", function={"name": "f", "arguments": '{"city": "Rome"}'}),
        {"role": "tool", "tool_call_id": "a", "content": "20 C"},
    ]
    reply = await ask(app, "POST", "/v1/chat/completions", chat_body(messages=messages, tools=TOOLS, context_policy=policy))
    assert reply.status == 200, reply.json()
    prompt = readable(engine.submissions[0].prompt)
    for part in ("f(city?: string): d\ng()\n", '{"name":"f","arguments":{"city":"Rome"}}', "Result of f:\n20 C"):
        assert part in prompt


NOT: dict[str, Any] = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
ODD = [*TOOLS, {"type": "function", "function": {"name": "odd", "parameters": NOT}}]
CALLED = '{"tool_calls":[{"name":"f","arguments":{"city":"Rome"}},{"name":"g","arguments":{}}]}'


async def answered(said: str, **fields: Any) -> tuple[FakeEngine, Any]:
    engine = FakeEngine(says(said))
    reply = await ask(make_app(engine), "POST", "/v1/chat/completions", chat_body(**fields))
    return engine, reply


async def test_a_schema_that_cannot_be_held_is_refused_where_it_has_to_be() -> None:
    """With the function and the keyword; where nobody has asked for it, the arguments are the model's own."""
    for fields in ({"tool_choice": "required"}, {"tools": [*TOOLS, {**ODD[2], "strict": True}]}):
        _, reply = await answered("x", **{"tools": ODD} | fields)
        assert (reply.status, reply.error["param"]) == (400, "tools[2].function.parameters")
        assert "'odd'" in reply.error["message"]
        assert "not" in reply.error["message"]
    _, reply = await answered("x", tools=ODD)
    assert reply.status == 200


async def test_calls_are_written_as_openai_has_them() -> None:
    """Also in the older form, which has one."""
    _, reply = await answered(CALLED, tools=TOOLS)
    (choice,) = reply.json()["choices"]
    made = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert [call["function"] for call in made] == [
        {"name": "f", "arguments": '{"city":"Rome"}'},
        {"name": "g", "arguments": "{}"},
    ]
    assert all(re.fullmatch("call_[0-9a-f]{24}", call["id"]) for call in made)
    assert made[0]["id"] != made[1]["id"]
    _, reply = await answered(CALLED.replace(',{"name":"g","arguments":{}}', ""), functions=[F])
    (choice,) = reply.json()["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == {"name": "f", "arguments": '{"city":"Rome"}'}


@pytest.mark.parametrize("said", ["Hello.", '{"tool_calls": "no"}', '{"a": 1}', '{"tool_calls": [{"name": "unknown"}]}'])
async def test_what_is_no_call_comes_as_text(said: str) -> None:
    """Whatever it looks like; and nothing is a call where nothing may be called."""
    for fields in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {}):
        _, reply = await answered(said, **fields)
        (choice,) = reply.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (said, "stop")
    _, reply = await answered(CALLED, tools=TOOLS, tool_choice="none")
    assert reply.json()["choices"][0]["message"]["content"] == CALLED


async def test_calls_are_counted_without_their_names() -> None:
    """In the metrics, as whole or as cut."""
    engine = FakeEngine(says(CALLED))
    app = make_app(engine)
    await ask(app, "POST", "/v1/chat/completions", chat_body(tools=TOOLS))
    engine.script = says(CALLED[:60], reason="length")
    await ask(app, "POST", "/v1/chat/completions", chat_body(tools=TOOLS))
    text = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_tool_calls_total{outcome="whole"} 2.0' in text
    assert 'poise_tool_calls_total{outcome="cut"} 1.0' in text
