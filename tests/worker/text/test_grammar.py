"""A real text worker and grammars: what it makes of good ones, and that bad ones end in a refusal, whatever they try."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from poise.gateway.request import structure as s
from poise.gateway.request.refusals import ApiError
from poise.gateway.request.structure import Structure
from poise.gateway.text.tokens import Tokens
from poise.llama.files.default_model import default_model
from tests.worker.text.test_process import with_workers

pytestmark = pytest.mark.slow

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = ("<tool", "<tool=x>", SCHEMA, "</tool>")
GOOD = [
    s.of_schema(SCHEMA, "p"),
    s.of_schema({}, "p"),
    s.of_json_object("p", s.FLEXIBLE),
    s.of_schema(SCHEMA, "p", s.whitespace_like(r"[ \n]?")),
    s.of_regex(r"[a-z]+/\d{2,4}", "p"),
    s.of_regex("a\nb", "p"),
    s.of_choice(["yes", 'n"o', "é\n"], "p"),
    s.of_grammar('start: "a" B\nB: /[0-9]+/', "p"),
    s.of_grammar('root ::= "a" | [0-9]+ ws\nws ::= " "*', "p"),
    s.of_tags([TAG], "p"),
]
BAD = [
    (s.of_schema({"not": {}}, "p"), "not"),
    (s.of_schema({"type": "array", "uniqueItems": True}, "p"), "uniqueItems"),
    (s.of_schema({"type": "string", "format": "foo"}, "p"), "foo"),
    (s.of_schema({"$ref": "http://example.com/x"}, "p"), "http://example.com/x"),
    (s.of_schema({"type": "foo"}, "p"), "foo"),
    (s.of_regex("(?=a)b", "p"), "look-ahead"),
    (s.of_grammar("start: nowhere", "p"), "nowhere"),
    (s.of_grammar("root ::= nowhere (", "p"), "GBNF"),
]


async def asked(text: Tokens, structure: Structure) -> str:
    try:
        return f"good {await text.grammar(structure.kind, structure.text)}"
    except ApiError as error:
        return f"{error.status} {error.code}: {error.message}"


async def test_good_and_bad_grammars() -> None:
    """All in one worker; what is bad is named."""

    async def ask(text: Tokens) -> None:
        for structure in GOOD:
            assert (await asked(text, structure)).startswith("good"), structure
        assert json.loads(await text.grammar("gbnf", 'root ::= "a"'))["grammars"]
        for structure, named in BAD:
            said = await asked(text, structure)
            assert said.startswith("400 invalid_schema"), said
            assert named in said

    await with_workers(default_model(), ask, workers=1)


async def test_what_takes_too_long_is_refused_in_time() -> None:
    """Eight thousand properties; the worker after that one answers as before."""

    async def ask(text: Tokens) -> None:
        await text.grammar("schema", GOOD[0].text)
        huge = s.of_schema({"properties": {f"p{i}": {"type": "string", "maxLength": i % 50 + 1} for i in range(8000)}}, "p")
        began_s = time.monotonic()
        assert (await asked(text, huge)).startswith("400 ")
        assert time.monotonic() - began_s < 60.0  # twelve times the limit, and a start
        assert (await asked(text, GOOD[0])).startswith("good")

    await with_workers(default_model(), ask, workers=1, grammar_timeout_s=0.5)
