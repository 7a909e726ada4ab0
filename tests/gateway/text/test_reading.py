"""Answers are read the same however they are cut: each family's calls, reasoning and text; and nothing in them is an error."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.text.answers import EntryKind
from poise.gateway.text.reading.machine import ResponseParser
from poise.gateway.text.reading.templates import Template, choose, read_template
from tests.gateway.text.answers_by_family import FAMILIES, TOOLS

WORDS = {EntryKind.TEXT: "say", EntryKind.REASONING: "think", EntryKind.CALL_NAME: "call", EntryKind.CALL_ARGUMENTS: "with"}
TEMPLATES = {
    name: choose(family.chat_template, {}, {text: 100 + i for i, text in enumerate(family.control)})
    for name, family in FAMILIES.items()
}
ANSWERS = [(name, text) for name, family in FAMILIES.items() for text in family.answers]


def as_given(template: Template, text: str) -> str:
    """An answer as its parser gets it: control tokens as their characters."""
    for char, name in template.names.items():
        text = text.replace(name, char)
    return text


def read(parser: ResponseParser, parts: Iterable[str]) -> list[tuple[str, str]]:
    """What the parts come to: neighbours of one kind together, but for names."""
    pieces = [piece for part in parts for piece in parser.push(part)] + list(parser.flush())
    told: list[tuple[str, str]] = []
    for kind, text in pieces:
        if told and told[-1][0] == WORDS[kind] != "call":
            told[-1] = (WORDS[kind], told[-1][1] + text)
        elif text:
            told.append((WORDS[kind], text))
    return told


def cut(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


@pytest.mark.parametrize(("name", "text"), ANSWERS)
def test_each_family(name: str, text: str) -> None:
    """Whole, character by character, and cut in two anywhere."""
    template, expected = TEMPLATES[name], FAMILIES[name].answers[text]
    given_text = as_given(template, text)
    assert read(ResponseParser(template, TOOLS), [given_text]) == expected
    assert read(ResponseParser(template, TOOLS), given_text) == expected
    for at in range(len(given_text)):
        assert read(ResponseParser(template, TOOLS), [given_text[:at], given_text[at:]]) == expected


@pytest.mark.parametrize(("name", "text"), ANSWERS)
def test_an_answer_may_end_anywhere(name: str, text: str) -> None:
    """And then, too, comes to the same however it was cut; names are told once, before their arguments."""
    template = TEMPLATES[name]
    given_text = as_given(template, text)
    for end in range(len(given_text)):
        told = read(ResponseParser(template, TOOLS), [given_text[:end]])
        assert read(ResponseParser(template, TOOLS), given_text[:end]) == told
        for one, other in itertools.pairwise(["", *(word for word, _ in told)]):
            assert other != "with" or one == "call"


@given(st.data())
def test_whatever_is_written(data: st.DataObject) -> None:
    """Marks in any order with anything between them: no error, the same in any parts, and no half of a character."""
    name = data.draw(st.sampled_from(list(FAMILIES)))
    template = TEMPLATES[name]
    atoms = sorted({part for text in FAMILIES[name].answers for part in (text[:9], text[-9:], text[9:20])})
    marks = [*template.names, *template.reasoning_opens, *template.reasoning_closes, *template.heads]
    text = "".join(data.draw(st.lists(st.sampled_from([*atoms, *marks, "{", '"', "}", "\\", " ", "\n", "x", "é"]), max_size=12)))
    inside, size = data.draw(st.booleans()), data.draw(st.integers(1, 9))
    whole = read(ResponseParser(template, TOOLS, inside=inside), [text])
    assert read(ResponseParser(template, TOOLS, inside=inside), cut(text, size)) == whole
    "".join(part for _, part in whole).encode()


def test_without_functions_nothing_is_a_call() -> None:
    """Reasoning is found all the same."""
    text = '<think>a</think><tool_call>{"name": "now", "arguments": {}}</tool_call>'
    told = read(ResponseParser(TEMPLATES["hermes"]), [text])
    assert told == [("think", "a"), ("say", '<tool_call>{"name": "now", "arguments": {}}</tool_call>')]


def test_text_that_spells_a_control_token_is_text() -> None:
    """Where a mark is a control token, only that counts; in text it is shown by name when it means nothing."""
    text = "[TOOL_CALLS]now[ARGS]{} [THINK]"
    assert read(ResponseParser(TEMPLATES["mistral"], TOOLS), text) == [("say", text)]
    template = TEMPLATES["mistral"]
    assert {template.names[char]: token for token, char in template.marks.items()} == {
        "[TOOL_CALLS]": 100, "[ARGS]": 101, "[THINK]": 103, "[/THINK]": 104,
    }  # fmt: skip


def test_reasoning_is_told_as_it_comes_and_begins_where_the_prompt_opens_it() -> None:
    """Tokens without text count as reasoning while it lasts; a mark in text means nothing once something was said."""
    parser = ResponseParser(TEMPLATES["hermes"], inside=True)
    assert list(parser.push("Hm")) == [(EntryKind.REASONING, "Hm")]
    assert list(parser.push("")) == list(parser.push("</thi")) == [(EntryKind.REASONING, "")]
    assert list(parser.push("nk>\n")) == [(EntryKind.REASONING, "")]
    assert list(parser.push("\nSo <think>")) == [(EntryKind.TEXT, "So <think>")]
    assert list(parser.push("")) == []


def test_a_name_is_told_before_its_arguments_are_whole() -> None:
    """And these as they come."""
    parser = ResponseParser(TEMPLATES["hermes"], TOOLS)
    assert list(parser.push('<tool_call>{"name": "now", "arguments": ')) == []
    assert list(parser.push('{"a')) == [(EntryKind.CALL_NAME, "now"), (EntryKind.CALL_ARGUMENTS, '{"a')]
    assert list(parser.push('": "b')) == [(EntryKind.CALL_ARGUMENTS, '": "b')]
    parser = ResponseParser(TEMPLATES["qwen-xml"], TOOLS)
    assert list(parser.push("<function=get_weather><parameter=city>\nA")) == [
        (EntryKind.CALL_NAME, "get_weather"),
        (EntryKind.CALL_ARGUMENTS, '{"city": "A'),
    ]
    assert list(parser.push('"')) == [(EntryKind.CALL_ARGUMENTS, '\\"')]


def test_white_space_is_held_back_within_bounds() -> None:
    """What is next to a mark is dropped, but for that which is too much of it."""
    told = read(ResponseParser(TEMPLATES["hermes"], TOOLS), "a" + "\n" * 100 + '<tool_call>{"name": "now"}</tool_call>\n\nb \n')
    assert told == [("say", "a" + "\n" * 36), ("call", "now"), ("with", "{}"), ("say", "b \n")]
    assert read(ResponseParser(TEMPLATES["hermes"], TOOLS), " \n a\n") == [("say", " \n a\n")]
    assert read(ResponseParser(TEMPLATES["hermes"], TOOLS), " " * 65 + "<think>") == [("say", " " * 65 + "<think>")]


@pytest.mark.parametrize(
    "text", ["<", "\n", '<tool_call>{"a":"', '<tool_call>{"a":', "<think>", "<tool_call>" * 2 + "[", '{"a":[', "\\"]
)
def test_work_is_linear(text: str) -> None:
    """Twice as much takes about twice as long, in one piece and in small ones."""

    def seconds(n: int, size: int) -> float:
        best = 9.0
        for _ in range(2):
            parser, begin_s = ResponseParser(TEMPLATES["hermes"], TOOLS), time.process_time()
            read(parser, cut(text * n, size))
            best = min(best, time.process_time() - begin_s)
        return best

    for size in (7, 1 << 30):
        assert seconds(4000, size) < 10 * seconds(1000, size) + 0.05


@pytest.mark.parametrize("source", ["...</think>...", "assistant\n<think>\n"])
def test_reasoning_is_known_by_either_mark(source: str) -> None:
    """Some templates cut it out of earlier turns, some only open it."""
    assert choose(source, {}, {}).reasoning_opens == ("<think>",)


OWN = {
    "version": 1,
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": "\\s*<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": "\\s*(?:<\\|im_end\\|>|<\\|endoftext\\|>)", "content": "text"},
    },
}  # fmt: skip


def test_a_template_of_its_own() -> None:
    """As it is published for a model."""
    for text, expected in FAMILIES["hermes"].answers.items():
        assert read(ResponseParser(read_template(OWN), TOOLS), text) == expected
    lines = {"fields": {"tool_calls": {"open_pattern": "CALL (?P<name>\\w+)\\n", "close": "END", "content": "kv-lines"}}}
    told = read(ResponseParser(read_template(lines), TOOLS), "CALL get_weather\ncity: Aix\ndays: 3\nEND")
    assert told == [("call", "get_weather"), ("with", '{"city": "Aix", "days": 3}')]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({}, "no template of version 1"),
        ({"version": 2, "fields": {}}, "no template of version 1"),
        ({"fields": {"calls": {}}}, "field 'calls' is not known"),
        ({"fields": {"tool_calls": {"open": "a", "content": "yaml"}}}, "content is 'yaml'"),
        ({"fields": {"tool_calls": {"close": "a"}}}, "neither 'open' nor 'open_pattern'"),
        ({"fields": {"tool_calls": {"open": 7}}}, "'open' is 7"),
        ({"fields": {"tool_calls": {"open_pattern": "a(?=b)"}}}, "has more than texts"),
        ({"fields": {"tool_calls": {"open_pattern": "\\s*(?P<name>\\w+)"}}}, "does not begin with a text"),
        ({"fields": {"reasoning_content": {"open_pattern": "a.*?b"}}}, "more than a text"),
        ({"fields": {"tool_calls": {"open": "a", "parameter": ["b"]}}}, "four texts"),
    ],
)
def test_templates_that_cannot_be_read(source: dict[str, object], problem: str) -> None:
    """Say what is wrong."""
    with pytest.raises(ValueError, match=re.escape(problem)):
        read_template(source)
