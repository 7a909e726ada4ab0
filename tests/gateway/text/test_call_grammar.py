"""Whatever a grammar of calls lets through is read as calls of declared functions, with arguments by their schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from poise.gateway.request.tools import Tool, ToolMode, ToolUse
from poise.gateway.text.answers import Detokeniser, EntryKind
from poise.gateway.text.call_grammar import grammar_of, needs_grammar, schema_of
from poise.gateway.text.reading.machine import ResponseParser
from poise.gateway.text.reading.templates import Template, choose
from tests.gateway.text.answers_by_family import FAMILIES

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 5},
        "unit": {"type": "string", "enum": ["C", "F"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 99},
        "often": {"type": "boolean"},
    },
    "required": ["city", "days"],
}
TOOLS = (Tool("get_weather", "w", SCHEMA), Tool("now", strict=True))
SCHEMAS: dict[str, dict[str, Any]] = {tool.name: schema_of(tool, lenient=False) for tool in TOOLS}
LIMITED = ("python-call-list", "kv-braces")
"""Notations in which arguments are not held."""
ENDING = frozenset(b'"}]<\n')


class Vocabulary:
    """A token for each byte, and control tokens."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, ()

    def __init__(self, control: tuple[str, ...]) -> None:
        self.control = {name: 257 + n for n, name in enumerate(control)}
        names = [b"\xff" + name.encode() for name in ("<eos>", *control)]
        self.tokens = [bytes([n]) for n in range(256)] + names

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


class Walker:
    """One model's: writes answers at random, and reads what came."""

    def __init__(self, name: str) -> None:
        family = FAMILIES[name]
        self.vocabulary = Vocabulary(family.control)
        self.template: Template = choose(family.chat_template, {}, self.vocabulary.control)
        self.tokenizer = LLTokenizer(TokenizerWrapper(self.vocabulary))

    def matcher(self, use: ToolUse) -> LLMatcher:
        grammar = json.dumps({"grammars": [{"lark_grammar": grammar_of(use, self.template)}]})
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def write(self, use: ToolUse, seed: int, begin: str = "") -> Iterator[int]:
        """Tokens, from a beginning on; it ends where it may, and strings end soon."""
        rng, matcher = random.Random(seed), self.matcher(use)
        assert self.template.calls is not None
        tag = list(self.template.calls.parameter[3].encode())  # at random it would not come
        for token in begin.encode():
            assert matcher.try_consume_tokens([token]) == 1
            yield token
        for _ in range(4000):
            if matcher.is_stopped() or (matcher.is_accepting() and rng.random() < 0.2):
                return
            if rng.random() < 0.2 and matcher.validate_tokens(tag) == len(tag):
                matcher.try_consume_tokens(tag)
                yield from tag
                continue
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = [int(token) for token in np.flatnonzero(bits) if token != 256]
            printable = [token for token in allowed if not token < 256 or 32 <= token < 127 or token == 10]
            token = rng.choice([t for t in printable if t in ENDING] or printable or allowed)
            assert matcher.try_consume_tokens([token]) == 1
            yield token
        raise AssertionError("it never ends")

    def read(self, tokens: Iterator[int]) -> tuple[str, list[tuple[str, str]]]:
        """What is said, and the calls."""
        parser = ResponseParser(self.template, SCHEMAS)
        said, calls, detokeniser = "", [], Detokeniser()
        pieces = [
            piece
            for token in tokens
            for piece in parser.push(self.template.marks.get(token) or detokeniser.push(self.vocabulary.tokens[token]))
        ]
        for kind, text in [*pieces, *parser.flush()]:
            if kind is EntryKind.CALL_NAME:
                calls.append((text, ""))
            elif kind is EntryKind.CALL_ARGUMENTS:
                calls[-1] = (calls[-1][0], calls[-1][1] + text)
            else:
                said += text
        return said, calls


def check(calls: list[tuple[str, str]], content: str) -> None:
    for name, arguments in calls:
        assert name in SCHEMAS
        if content not in LIMITED:
            jsonschema_rs.validate(SCHEMAS[name], json.loads(arguments))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_has_to_be_calls_is_read_as_calls(name: str) -> None:
    """At least one, nothing else, and each valid; not more than one where there is to be no second."""
    walker = Walker(name)
    assert walker.template.calls is not None
    content = walker.template.calls.content
    if content in LIMITED:
        return
    seen = set()
    for seed in range(12):
        use = ToolUse(TOOLS, ToolMode.REQUIRED, (), seed % 2 == 0)
        said, calls = walker.read(walker.write(use, seed))
        assert said.strip() == ""
        assert len(calls) == 1 if seed % 2 else calls
        check(calls, content)
        seen |= {called for called, _ in calls}
        _, (only,) = walker.read(walker.write(ToolUse(TOOLS, ToolMode.REQUIRED, ("now",), False), seed))
        assert only == ("now", "{}")
    assert seen == set(SCHEMAS)


FREE = ["Hello.", "A <b> tag. ", '{"a": 1}', ""]


@pytest.mark.parametrize("said", FREE)
@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_free_until_a_call_begins(name: str, said: str) -> None:
    """Also text that looks a little like one."""
    walker = Walker(name)
    matcher = walker.matcher(ToolUse(TOOLS))
    tokens = list(said.encode())
    assert matcher.try_consume_tokens(tokens) == len(tokens)
    assert matcher.is_accepting()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_that_begins_has_to_be_one(name: str) -> None:
    """Of a declared function; and where there is to be no second one, none begins."""
    walker = Walker(name)
    calls = walker.template.calls
    assert calls is not None
    if calls.content in LIMITED:
        return
    tokens = list(walker.write(ToolUse(TOOLS, ToolMode.REQUIRED, ("now",), False), 1))
    for parallel in (True, False):
        matcher = walker.matcher(ToolUse(TOOLS, ToolMode.AUTO, (), parallel))
        before = b"" if calls.bare else b"Well. "
        assert matcher.try_consume_tokens([*before, *tokens]) == len(before) + len(tokens)
        assert matcher.is_accepting()
        if not parallel:
            n_more = matcher.try_consume_tokens(tokens) if not matcher.is_stopped() else 0
            assert n_more < len(tokens)
    wrong = walker.matcher(ToolUse(TOOLS, ToolMode.AUTO, ("get_weather",)))
    assert wrong.try_consume_tokens(tokens) < len(tokens)


def test_answers_are_held_where_something_was_asked_for() -> None:
    """Models with calls of their own are free by default; those without never are, where there is anything to call."""
    hermes, generic = Walker("hermes").template, Walker("generic").template
    plain = (Tool("f"),)
    for use, held in (
        (ToolUse(plain), False),
        (ToolUse(plain, ToolMode.REQUIRED), True),
        (ToolUse(plain, ToolMode.AUTO, ("f",)), True),
        (ToolUse(plain, ToolMode.AUTO, (), False), True),
        (ToolUse((*plain, Tool("g", strict=True))), True),
    ):
        assert needs_grammar(use, hermes) is held
        assert needs_grammar(use, generic)
    for nothing in (ToolUse(), ToolUse(plain, ToolMode.NONE)):
        assert not needs_grammar(nothing, hermes)
        assert not needs_grammar(nothing, generic)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (None, False),
        ({"type": "object", "properties": {}}, False),
        ({"properties": {"a": {}}}, False),
        ({"type": "object"}, None),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": True}, True),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"x": {}}}, None),
    ],
)
def test_arguments_are_those_that_are_declared(parameters: dict[str, Any] | None, expected: bool | None) -> None:
    """Unless the schema says otherwise."""
    assert schema_of(Tool("f", parameters=parameters), lenient=False).get("additionalProperties") is expected


def test_another_answer_may_be_held_as_well() -> None:
    """Who asks for a format has it where the model calls nothing."""
    walker = Walker("generic")
    grammar = grammar_of(ToolUse(TOOLS), walker.template, content='("yes" | "no")')
    matcher = LLMatcher(walker.tokenizer, json.dumps({"grammars": [{"lark_grammar": grammar}]}), log_level=0)
    assert matcher.validate_tokens(list(b"yes")) == 3
    assert matcher.validate_tokens(list(b"maybe")) == 0
    assert matcher.validate_tokens(list(b'{"tool_calls":[{"name":"now","arguments":{}}]}')) == 46
