"""Which model answers to a name: its own, aliases and patterns, any at all; and what /v1/models says of them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config import Settings
from poise.gateway.models.names import ModelNames, UnknownTarget
from poise.gateway.request.refusals import ApiError
from tests.gateway.fakes import MODEL, SLOT_CELLS, FakeEngine, ask, chat_body, make_app, prompt_body, says
from tests.gateway.scripted_backend import ScriptedBackend

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ONE, TWO = ScriptedBackend("one"), ScriptedBackend("two")
TEXT = st.text(st.sampled_from("ab*?[]/.:-"), min_size=1, max_size=6)


def found(names: ModelNames, name: str) -> str | None:
    try:
        return names.find(name).card.name
    except ApiError as error:
        return None if (error.status, error.code, error.param) == (404, "model_not_found", "model") else repr(error)


def test_own_names_then_aliases_then_patterns_in_their_order() -> None:
    names = ModelNames(
        {"one": ONE, "two": TWO}, {"t*": "one", "gpt-4.1": "two", "gpt-*": "one", "gpt-4*": "two", "two": "one", "o?e": "two"}
    )
    wanted = {"one": "one", "two": "two", "gpt-4.1": "two", "gpt-4o": "one", "tea": "one", "ore": "two", "GPT-4": None}
    assert {name: found(names, name) for name in wanted} == wanted
    assert found(names, "default") == found(names, "") == "one"
    assert (list(names.aliases), names.exact) == (["gpt-4.1"], None)


def test_the_default_can_be_another_model() -> None:
    names = ModelNames({"one": ONE, "two": TWO}, {"default": "two"})
    assert (found(names, "default"), found(names, "")) == ("two", "two")


@given(st.dictionaries(TEXT, st.sampled_from(["one", "two", "default"]), max_size=5), TEXT, st.booleans())
def test_whatever_the_aliases_a_models_own_name_is_its_own(aliases: dict[str, str], name: str, any_name: bool) -> None:
    """An exact alias goes before every pattern, and every name is let in that should be."""
    names = ModelNames({"one": ONE, "two": TWO}, aliases, any_name=any_name)
    assert (found(names, "one"), found(names, "two")) == ("one", "two")
    assert all(found(names, alias) is not None for alias in names.aliases)
    if name in names.aliases:
        assert found(names, name) == {"default": "one"}.get(aliases[name], aliases[name])
    if any_name:
        assert found(names, name) is not None
        assert found(ModelNames({"one": ONE, "two": TWO}, aliases), name) in (found(names, name), None)
    if names.exact is not None:
        assert (found(names, name) is not None) == (name in names.exact)


def test_an_alias_of_no_model_says_which_there_are() -> None:
    with pytest.raises(UnknownTarget, match=r'aliases\."gpt-\*" = "three": .* "default", "one"'):
        ModelNames({"one": ONE}, {"gpt-*": "three"})


def named(**model: Any) -> Settings:
    aliases = {"vendor/small:8b": MODEL, "gpt-*": "default"}
    return Settings.model_validate({"aliases": aliases, "model": model, "classes": {}})


@pytest.mark.parametrize("name", ["vendor/small:8b", "gpt-4o-mini", "default", None, ...])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat_body()), (COMPLETIONS, prompt_body("Hi"))])
async def test_a_request_by_any_of_its_names(path: str, body: dict[str, Any], name: Any) -> None:
    """The answer says which model made it."""
    body = {**body, "model": name}
    if name is ...:
        del body["model"]
    reply = await ask(make_app(FakeEngine(says("x")), named()), "POST", path, body)
    assert (reply.status, reply.json()["model"]) == (200, MODEL)


async def test_another_name_is_told_what_would_do() -> None:
    """Names, patterns, and the settings that let others in."""
    reply = await ask(make_app(FakeEngine(), named()), "POST", CHAT, chat_body(model="dummy"))
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    for told in ('"dummy"', f"'{MODEL}'", "'default'", "'vendor/small:8b'", "'gpt-*'", "[aliases]", "model.any_name"):
        assert told in reply.error["message"], told


async def test_any_name_where_that_is_set() -> None:
    reply = await ask(make_app(FakeEngine(says("x")), named(any_name=True)), "POST", CHAT, chat_body(model="org/other:latest"))
    assert (reply.status, reply.json()["model"]) == (200, MODEL)


async def test_the_list_and_the_cards() -> None:
    """Exact aliases have cards, with their model as `root`; patterns, and names with slashes, are answered for."""
    app = make_app(FakeEngine(), named())
    cards = (await ask(app, "GET", "/v1/models")).json()["data"]
    assert [(card["id"], card["root"]) for card in cards] == [(MODEL, MODEL), ("vendor/small:8b", MODEL)]
    for card in cards:
        assert (card["object"], card["owned_by"]) == ("model", "poise")
        assert card["context_length"] == card["max_model_len"] == SLOT_CELLS
        assert type(card["created"]) is int
        assert (await ask(app, "GET", f"/v1/models/{card['id']}")).json() == card
    assert (await ask(app, "GET", "/v1/models/gpt-4o")).json()["root"] == MODEL
    assert (await ask(app, "GET", "/v1/models/other/one")).error["code"] == "model_not_found"


async def test_the_document_names_them_where_they_are_all_known() -> None:
    """With patterns there are others, which a generated client must be able to send."""
    for settings, names in ((None, ["default", MODEL, None]), (named(), None)):
        paths = (await ask(make_app(FakeEngine(), settings), "GET", "/openapi.json")).json()["paths"]
        schema = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["properties"]["model"].get("enum") == names
