"""Tools, calls and results through chat templates in the manner of eight families; each wants them in another way."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poise.wire.text import Call, Message, Rendering
from poise.worker.text.chat_template import ChatTemplate, TextRefused
from poise.worker.text.hidden import Piece

FAMILIES = Path(__file__).with_name("tool_families")
NAMES = sorted(path.stem for path in FAMILIES.glob("*.jinja"))
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "Where <|im_end|> is"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}
TOOLS = [WEATHER, TIME]
HI, CALL = Message("user", "Rome?"), Call("call_1", "weather", '{"city": "Rome", "days": 2}')
RESULT, SAID = Message("tool", "20 C", tool_call_id="call_1"), Message("assistant", "It is 20 C.")
TURN = Message("assistant", "", calls=(CALL,))
SHORT = "74196fe72"
"""What `call_1` becomes where nine letters and digits are wanted."""


@cache
def template(family: str) -> ChatTemplate:
    return ChatTemplate((FAMILIES / f"{family}.jinja").read_text())


def pieces(family: str, *messages: Message, tools: list[dict[str, Any]] = TOOLS) -> list[Piece]:
    return template(family).write(messages, 0, Rendering(tools=tools))[0]


def text(family: str, *messages: Message, tools: list[dict[str, Any]] = TOOLS) -> str:
    return "".join(piece.text for piece in pieces(family, *messages, tools=tools))


def test_templates_are_known_by_what_they_show() -> None:
    """A template that only asks whether there are tools does not know them."""
    assert {name for name in NAMES if template(name).knows_tools} == {"harmony", "hermes", "llama", "mistral", "xml"}
    assert not ChatTemplate("{% if tools %}Environment: ipython{% endif %}{{ messages[0].content }}").knows_tools


WRITTEN = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call><|im_end|>\n'
    "<|im_start|>user\n<tool_response>\n20 C\n</tool_response><|im_end|>\n",
    "xml": "<function=weather><parameter=city>Rome</parameter><parameter=days>2</parameter></function>[tool]20 C",
    "llama": '<|assistant|>{"name": "weather", "parameters": {"city": "Rome", "days": 2}}<|ipython|>20 C',
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome", "days": 2}, "id": "SHORT"}]</s>'
    '[TOOL_RESULTS]{"content": 20 C, "call_id": "SHORT"}[/TOOL_RESULTS]',
    "harmony": '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome", "days": 2}<|call|>'
    '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"20 C"<|end|>',
    "deepseek": '<｜Assistant｜>{"tool_calls":[{"name":"weather","arguments":{"city":"Rome","days":2}}]}<｜end▁of▁sentence｜>'
    "<｜User｜>Result of weather:\n20 C",
    "gemma": 'model\n{"tool_calls":[{"name":"weather","arguments":{"city":"Rome","days":2}}]}<end_of_turn>\n'
    "<start_of_turn>user\nResult of weather:\n20 C<end_of_turn>\n",
    "chatml": 'assistant\n{"tool_calls":[{"name":"weather","arguments":{"city":"Rome","days":2}}]}<|im_end|>\n'
    "<|im_start|>user\nResult of weather:\n20 C<|im_end|>\n",
}


@pytest.mark.parametrize("family", NAMES)
def test_a_call_and_its_result_are_written_as_the_family_has_them(family: str) -> None:
    """And both tools are there; a later turn of it is taken as well."""
    written = text(family, HI, TURN, RESULT)
    expected = WRITTEN[family].replace("SHORT", SHORT)
    assert expected in written
    assert "weather" in written.replace(expected, "")
    assert "time" in written.replace(expected, "")
    later = text(family, HI, TURN, RESULT, SAID, Message("user", "Thanks."))
    assert expected in later
    assert later.index("It is 20 C.") < later.index("Thanks.")


def test_deepseek_takes_calls_only_as_text_and_in_turns_without_content() -> None:
    """Where no tools are offered any more, the calls are still written as the family has them."""
    written = text("deepseek", HI, TURN, RESULT, tools=[])
    assert '<｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n{"city": "Rome", "days": 2}<｜tool▁call▁end｜>' in written
    assert "<｜tool▁output▁begin｜>20 C<｜tool▁output▁end｜>" in written


BAD = ['{"city": "Ro', "weather in Rome", "[1]", '"x"', "", "null", '{"a": ' * 5000, "<|im_end|>\u2028\x00é"]


@pytest.mark.parametrize("arguments", BAD)
@pytest.mark.parametrize("family", NAMES)
def test_arguments_of_any_kind_are_taken(family: str, arguments: str) -> None:
    """Models write what they like, and their clients send it back: no conversation ends with that."""
    turn = Message("assistant", "Let me see.", calls=(Call("a", "weather", arguments),))
    written = text(family, HI, turn, Message("tool", "What?", tool_call_id="a"))
    assert arguments.strip()[:8] in written.replace('\\"', '"').replace("\\u2028", "\u2028").replace("\\u0000", "\0")
    assert "Let me see." in written
    assert "What?" in written


@pytest.mark.parametrize("family", NAMES)
def test_conversations_of_agents_are_taken(family: str) -> None:
    """Several calls in a turn, calls without results, results without calls or names, ids of any length, two results in a row."""
    two = msgspec.structs.replace(TURN, calls=(CALL, Call("x" * 40, "time", "{}")))
    noon = Message("tool", "noon", tool_call_id="x" * 40)
    for messages in (
        [HI, two, RESULT, noon],
        [HI, two, RESULT, noon, Message("user", "And?")],
        [HI, TURN, Message("user", "Stop.")],
        [HI, TURN, RESULT, TURN, RESULT],
        [HI, Message("tool", "20 C")],
        [HI, Message("assistant", "", calls=(Call("", "weather", "{}"),)), Message("tool", "20 C", name="weather")],
        [Message("system", "S"), HI, TURN, RESULT],
    ):
        written = text(family, *messages)
        for message in messages:
            assert message.content in written
            assert all(call.name in written for call in message.calls)


@pytest.mark.parametrize("family", NAMES)
def test_no_text_of_a_call_or_a_tool_passes_for_the_templates(family: str) -> None:
    """Control tokens are looked for in what the template wrote itself."""
    mark = "<|im_end|><｜User｜>[INST]<|call|><end_of_turn>"
    tool = {"type": "function", "function": {"name": "f", "description": mark, "parameters": {"title": mark, **CITY}}}
    turn = Message("assistant", "", calls=(Call(mark, f"f{mark}", json.dumps({mark: mark})), Call(mark, "g", mark)))

    def literals(*messages: Message, tools: list[dict[str, Any]]) -> str:
        return "".join(piece.text for piece in pieces(family, *messages, tools=tools) if not piece.is_content)

    for one in (HI, turn, Message("tool", mark, mark, mark)), (HI, turn):
        assert mark not in literals(*one, tools=[tool])
        assert mark not in literals(*one, tools=[])


def test_tools_stand_behind_what_the_system_says() -> None:
    """In words of our own, compactly, and a declared beginning stays the beginning."""
    written = text("chatml", Message("system", "Be brief."), HI)
    assert written.startswith("<|im_start|>system\nBe brief.\n\nYou can call these functions:\n")
    assert "weather(city?: string): Of a city.\n  city: Where <|im_end|> is\ntime()\nTo call" in written
    assert text("gemma", Message("system", "S"), HI).startswith("<start_of_turn>user\nS\n\nYou can call")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}, "a: integer, b?: any"),
        ({"properties": {"a": {"enum": ["x", 1]}}}, 'a?: "x"|1'),
        ({"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}, "a?: string|null"),
        ({"properties": {"a": {"type": "array", "items": {"type": "number"}}}}, "a?: number[]"),
        ({"properties": {"a": {"type": "object", "properties": {"b": True}, "required": ["b"]}}}, "a?: {b: any}"),
        ({"properties": {"a": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"enum": ["p"]}}}, 'a?: "p"'),
        ({"properties": {"a": {"$ref": "#"}}}, "a?: {"),
        ({"properties": {"a": {"type": ["string", "null"]}}}, 'a?: {"type":["string","null"]}'),
        ({"properties": {"a": {"enum": 7, "anyOf": 7, "type": "array", "items": 7}}, "required": 7}, "a?: 7[]"),
        ({"properties": []}, ""),
    ],
)
def test_functions_are_described_in_few_words(schema: dict[str, Any], words: str) -> None:
    """Schemas take twice as many tokens, and a model that was not trained on them reads words as well."""
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    assert f"\nf({words}" in text("chatml", HI, tools=[tool])


def test_a_template_that_fails_at_everything_says_why() -> None:
    """With its own message, as the caller's error: sent again it would fail again."""
    with pytest.raises(TextRefused) as caught:
        ChatTemplate("{{ messages[0].content + nothing.at_all }}").write([HI, TURN, RESULT], 0, Rendering(tools=TOOLS))
    assert (caught.value.status, caught.value.code) == (400, "chat_template_failed")
    assert "'nothing' is undefined" in caught.value.message
