"""Grammars before the engine is given them: each is tried once, what was found is remembered, and size is bounded."""

from __future__ import annotations

import pytest

from poise.gateway.models.local.grammars import GRAMMARS_MAX, TENANTS_MAX, Grammars
from poise.gateway.request.refusals import ApiError, text_unavailable
from poise.gateway.request.structure import Structure, of_grammar, of_schema
from poise.gateway.text.tokens import Tokens


class Text(Tokens):
    """A text worker that says what it is told to, and counts."""

    def __init__(self) -> None:
        self.tried = 0
        self.answer: str | ApiError = ""

    async def grammar(self, kind: str, text: str) -> str:
        self.tried += 1
        if isinstance(self.answer, ApiError):
            raise self.answer
        return self.answer


def schema(n: int = 0) -> Structure:
    return of_schema({"const": n}, "json_schema")


async def refusal(grammars: Grammars, structure: Structure, text: Text) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await grammars.tried(structure, "a", text)
    return caught.value


async def test_a_good_one_is_tried_once_for_each_tenant() -> None:
    grammars, text = Grammars(256), Text()
    for tenant in ("a", "a", "b", "a"):
        assert await grammars.tried(schema(), tenant, text) == schema().text
    assert text.tried == 2


async def test_a_bad_one_is_refused_as_its_user_wrote_it_and_tried_once() -> None:
    grammars, text = Grammars(256), Text()
    text.answer = ApiError(400, "invalid_schema", 'Unimplemented keys: ["not"]')
    for _ in range(2):
        error = await refusal(grammars, schema(), text)
        assert (error.status, error.code, error.param) == (400, "invalid_schema", "json_schema")
        assert "not" in error.message
    assert text.tried == 1
    assert (await refusal(grammars, of_grammar("start: x", "grammar"), text)).code == "invalid_grammar"


async def test_a_worker_that_is_busy_says_nothing_of_the_grammar() -> None:
    grammars, text = Grammars(256), Text()
    text.answer = text_unavailable("all of them are busy", 2.0)
    assert (await refusal(grammars, schema(), text)).status == 503
    text.answer = ""
    assert await grammars.tried(schema(), "a", text)


async def test_gbnf_goes_to_the_engine_in_its_form() -> None:
    grammars, text = Grammars(256), Text()
    text.answer = "{}"
    assert await grammars.tried(of_grammar('root ::= "a"', "grammar"), "a", text) == "{}"


async def test_a_large_one_is_refused_unseen() -> None:
    """With its size, the limit, and the setting that has it."""
    grammars, text = Grammars(1), Text()
    error = await refusal(grammars, of_schema({"const": "x" * 1024}, "guided_json"), text)
    assert (error.code, error.param, text.tried) == ("invalid_schema", "guided_json", 0)
    assert "1024" in error.message
    assert "text.grammar_kb_max" in error.message


async def test_what_is_remembered_is_bounded() -> None:
    """By tenant, and by tenants: whoever asks last stays."""
    grammars, text = Grammars(256), Text()
    for n in range(GRAMMARS_MAX + 1):
        await grammars.tried(schema(n), "a", text)
    await grammars.tried(schema(0), "a", text)
    assert text.tried == GRAMMARS_MAX + 2
    for n in range(TENANTS_MAX):
        await grammars.tried(schema(), f"tenant-{n}", text)
    assert len(grammars._known) == TENANTS_MAX
    assert "a" not in grammars._known


async def test_what_is_known_of_a_tenants_is_erased() -> None:
    """Also why one was refused, which may quote it; others' stay."""
    grammars, text = Grammars(256), Text()
    for tenant in ("a", "b"):
        await grammars.tried(schema(), tenant, text)
    assert await grammars.erase("a") == {"grammars": 1}
    assert await grammars.erase("a") == {"grammars": 0}
    for tenant in ("a", "b"):
        await grammars.tried(schema(), tenant, text)
    assert text.tried == 3
