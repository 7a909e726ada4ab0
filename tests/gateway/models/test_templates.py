"""Declared templates: whose they are, which tokens they have, and that a prompt really begins with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config import Settings
from poise.gateway.models.local.templates import SHIPPED, Templates, TemplateUnusable
from poise.wire.text import Message
from poise.worker.text.tokeniser import common_tokens
from tests.gateway.fakes import (
    FakeEngine,
    ask,
    at_once,
    chat_body,
    make_app,
    prompt_body,
    readable,
    says,
    text_here,
    text_model,
    tokeniser,
)

CHAT = "/v1/chat/completions"
SETTINGS = Settings.model_validate(
    {
        "auth": {"required": False, "keys": {"ann": "key-of-ann-12", "bob": "key-of-bob-12"}},
        "templates": {"support": {"text": "You help customers."}, "secret": {"text": "Ann's own.", "tenants": ["ann"]}},
    }
)
ANN, BOB = {"authorization": "Bearer key-of-ann-12"}, {"authorization": "Bearer key-of-bob-12"}


async def asked(body: dict[str, Any], headers: dict[str, str] = ANN, **arguments: Any) -> tuple[FakeEngine, Any]:
    engine = FakeEngine(says("x"))
    return engine, await ask(make_app(engine, SETTINGS, **arguments), "POST", CHAT, body, headers=headers)


async def test_a_template_is_the_system_message() -> None:
    """The whole prompt begins with its tokens, the engine is told the name, and usage counts all of it."""
    engine, reply = await asked(chat_body(template="support"))
    (request,) = engine.submissions
    system = "⟨257⟩system\nYou help customers.⟨258⟩\n⟨257⟩"
    assert readable(request.prompt) == system + "user\nHi⟨258⟩\n⟨257⟩assistant\n"
    assert readable(engine.declared["support"]) == system
    assert request.template == "support"
    assert reply.json()["usage"]["prompt_tokens"] == len(request.prompt)


async def test_a_request_without_a_template_names_none() -> None:
    """Also when its own system message is the same text: only who asks for a template gets it."""
    messages = [{"role": "system", "content": "You help customers."}, {"role": "user", "content": "Hi"}]
    engine, reply = await asked({"model": "toy", "messages": messages})
    assert reply.status == 200
    assert engine.submissions[0].template == ""


TEMPLATES = Templates(SETTINGS.templates)
TEXT = text_model()
at_once(TEMPLATES.learn(TEXT))


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=8)), min_size=1, max_size=4))
def test_every_conversation_with_a_template_begins_with_its_tokens(turns: list[tuple[str, str]]) -> None:
    """Whatever is said after the system message, and whoever says it."""
    messages = TEMPLATES.apply("support", "bob", [Message(role, text) for role, text in turns])
    assert TEMPLATES.begins("support", asyncio.run(TEXT.of("bob").chat(messages)).ids) == "support"


def test_a_prompt_that_begins_otherwise_names_no_template() -> None:
    """The engine would have to refuse it."""
    assert TEMPLATES.begins("support", [1, 2, 3]) == ""
    assert TEMPLATES.begins("support", []) == ""


@pytest.mark.parametrize(
    ("name", "headers", "names"),
    [
        ("suport", ANN, ['"support"', '"secret"', '"outline-first"']),
        ("secret", BOB, ['"support"', '"outline-first"']),
        ("nothing", BOB, ['"support"', '"outline-first"']),
    ],
)
async def test_a_name_that_is_not_for_this_tenant(name: str, headers: dict[str, str], names: list[str]) -> None:
    """Refused with the names it may use; of others' templates nothing is told, not even that they exist."""
    engine, reply = await asked(chat_body(template=name), headers)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "template_not_found", "template")
    assert reply.error["message"].split("You may use: ")[1] == ", ".join(names) + "."
    assert not engine.submissions


async def test_without_any_template_the_answer_says_so() -> None:
    """Rather than an empty list of names: here the shipped one is another tenant's."""
    settings = Settings.model_validate({"templates": {"outline-first": {"text": "Outline!", "tenants": ["ann"]}}})
    reply = await ask(make_app(FakeEngine(), settings), "POST", CHAT, chat_body(template="x"))
    assert reply.error["message"] == 'There is no template "x" for you. None is declared for you.'


@pytest.mark.parametrize("role", ["system", "developer"])
async def test_a_template_is_the_whole_system_prompt(role: str) -> None:
    """A system message beside it is refused with its place and with what to do."""
    messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": "Be brief."}]
    engine, reply = await asked({"model": "toy", "messages": messages, "template": "support"})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_value", "template")
    assert "messages[1]" in reply.error["message"]
    assert "user message" in reply.error["message"]
    assert not engine.submissions


async def test_raw_prompts_have_no_templates() -> None:
    """The parameter is known, and belongs elsewhere."""
    reply = await ask(make_app(FakeEngine()), "POST", "/v1/completions", prompt_body(template="x"))
    assert reply.error["code"] == "unknown_parameter"
    assert "/v1/chat/completions" in reply.error["message"]


async def test_errors_name_the_caller_s_own_messages() -> None:
    """The template's text in front of them does not shift their numbers."""
    template = "{{ messages[0].content }}{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "42"}]
    body = {"model": "toy", "messages": messages, "template": "support"}
    _, reply = await asked(body, jobs=text_here(template=template))
    assert (reply.error["code"], reply.error["param"]) == ("message_left_out", "messages[1]")


async def test_the_list_is_the_tenant_s_own() -> None:
    """With the number of tokens of each, once the vocabulary has told, and whether they need no computing."""
    engine = FakeEngine()
    app = make_app(engine, SETTINGS, with_text=False)
    assert (await ask(app, "GET", "/v1/templates", headers=BOB)).json()["data"] == [
        {"name": "support", "object": "template", "tokens": None, "kept": True},
        {"name": "outline-first", "object": "template", "tokens": None, "kept": False},
    ]
    await app.set_text(text_model())
    lengths = {name: (len(tokens), True) for name, tokens in engine.declared.items()}
    lengths["outline-first"] = (len(common_tokens(tokeniser(), SHIPPED["outline-first"])), False)
    for headers, names in ((ANN, ["support", "secret"]), (BOB, ["support"]), ({}, ["support"])):
        body = (await ask(app, "GET", "/v1/templates", headers=headers)).json()
        assert body["object"] == "list"
        assert {card["name"]: (card["tokens"], card["kept"]) for card in body["data"]} == {
            name: lengths[name] for name in [*names, "outline-first"]
        }
    assert (await ask(app, "GET", "/v1/templates", headers={"x-api-key": "no"})).status == 401


async def test_a_shipped_template_costs_nothing_until_it_is_used() -> None:
    """The engine is told of it neither at the start nor with a request; the prompt has its text all the same."""
    engine = FakeEngine(says("x"))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(template="outline-first"))
    assert reply.status == 200
    assert engine.declared == {}
    (request,) = engine.submissions
    assert readable(request.prompt).startswith(f"⟨257⟩system\n{SHIPPED['outline-first']}⟨258⟩")
    assert request.template == ""


async def test_an_operator_s_template_replaces_the_shipped_one() -> None:
    """Its text, and kept like all that are declared."""
    engine = FakeEngine(says("x"))
    app = make_app(engine, Settings.model_validate({"templates": {"outline-first": {"text": "Plan, then write."}}}))
    await ask(app, "POST", CHAT, chat_body(template="outline-first"))
    assert "system\nPlan, then write." in readable(engine.declared["outline-first"])
    assert engine.submissions[0].template == "outline-first"
    (card,) = (await ask(app, "GET", "/v1/templates")).json()["data"]
    assert (card["name"], card["kept"]) == ("outline-first", True)


async def test_a_template_for_a_model_without_a_system_role_is_said_by_the_user() -> None:
    """All conversations begin with it there as well, so it can be kept."""
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}[{{ messages[0].content }}]"
    assert readable(common_tokens(tokeniser(template=source), "S")) == "[S\n\n"


async def test_a_shipped_template_that_the_model_cannot_have_is_not_offered() -> None:
    """Nobody asked for it, so the server starts all the same."""
    source = "{{ raise_exception('no') }}{{ messages[0].content }}"
    app = make_app(FakeEngine(says("x")), jobs=text_here(template=source))
    assert (await ask(app, "GET", "/v1/templates")).json()["data"] == []
    reply = await ask(app, "POST", CHAT, chat_body(template="outline-first"))
    assert reply.error["code"] == "template_not_found"


def test_a_model_without_system_messages_cannot_have_templates() -> None:
    """The operator is told at the start, with the template's name and the reason."""
    source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(TemplateUnusable, match=r"templates\.support .*no system role"):
        at_once(Templates(SETTINGS.templates).learn(text_model(template=source)))


def test_a_chat_template_that_allows_only_users_after_the_system_message() -> None:
    """What cannot come next need not have the tokens in common, so there are more of them."""
    source = (
        "{% for m in messages %}{% if loop.index0 > 0 and m.role != 'user' %}{{ raise_exception('no') }}{% endif %}"
        "<|im_start|>{{ m.role }}:{{ m.content }}{% endfor %}"
    )
    tokens = common_tokens(tokeniser(template=source), "S")
    assert readable(tokens) == "⟨257⟩system:S⟨257⟩user:"
