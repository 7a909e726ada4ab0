"""A request on its way between this host and others: what is given back, who is told, and who answers once nobody else does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poise.scheduler.request import RejectReason
from tests.egress.cloud import Cloud, Exchange, delta, dies_after, refuses, says
from tests.egress.matrix import TRIGGERS, Trigger, answers, computes_long
from tests.egress.test_matrix import serving
from tests.gateway.fakes import MODEL, ask, chat_body, exchange


async def down(exchange: Exchange) -> None:
    """It says which models it has, and answers nothing."""
    await (says("x") if exchange.method == "GET" else refuses("500 No"))(exchange)


async def goes_on(exchange: Exchange) -> None:
    """It says one word, and then nothing until its client leaves."""
    if exchange.method == "GET":
        await says("x")(exchange)
        return
    await exchange.begin()
    await exchange.event(delta("word"))
    await exchange.gone.wait()


AUTO: dict[str, Any] = {"model": "auto", "max_tokens": 5}


async def test_who_leaves_for_a_long_wait_is_taken_back_from_the_engine(tmp_path: Path) -> None:
    """Nothing of it is computed here, and the answer is the other server's, under its model's name."""
    trigger = Trigger(settings={"wait_s": 1.0}, script=lambda s: s.accept(40, 60_000_000))
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, engine):
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO | {"n": 1}))
        assert reply.json()["choices"][0]["message"]["content"] == "hello"
        assert (reply.json()["model"], reply.headers["x-poise-backend"]) == ("big", "cloud:cloud")
        assert (reply.headers["x-poise-route-reason"], reply.headers["x-poise-fallback-from"]) == ("wait", "local")
        assert engine.aborted == [1]


@pytest.mark.parametrize(("tier", "backend"), [("flex", "cloud:cloud"), ("default", "local")])
async def test_heavy_work_leaves_for_the_time_of_its_own_prompt(tmp_path: Path, tier: str, backend: str) -> None:
    """A slot is free, but everybody else would wait while it computes; of a chat only the queue counts."""
    trigger = Trigger(settings={"wait_s": 1.0, "heavy_wait_s": 1.0}, script=computes_long, body={"service_tier": tier})
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO | trigger.body | {"n": 1}))
        assert (reply.status, reply.headers["x-poise-backend"]) == (200, backend)


@pytest.mark.parametrize("stream", [True, False])
async def test_this_host_answers_where_the_cloud_does_not(tmp_path: Path, stream: bool) -> None:
    """Before its first content: the wait here is then no reason any more."""
    trigger = Trigger(settings={"wait_s": 1.0}, script=TRIGGERS["long queue"].script)
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, engine):
        cloud.answers(down)
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO, stream=stream))
        text = reply.text if stream else reply.json()["choices"][0]["message"]["content"]
        model = reply.chunks[0]["model"] if stream else reply.json()["model"]
        assert (reply.status, text, model) == (200, "here", MODEL)
        assert (reply.headers["x-poise-backend"], reply.headers["x-poise-fallback-from"]) == ("local", "second")
        assert len(engine.submissions) == 2


async def test_without_fallbacks_the_first_choice_answers_or_nobody(tmp_path: Path) -> None:
    """By header, and by the field of the body."""
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["long queue"]) as (app, engine):
        cloud.answers(down)
        for body, headers in (({}, {"x-poise-no-fallback": "1"}), ({"fallback": False}, {})):
            reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO, **body), headers=headers)
            assert (reply.status, reply.error["code"]) == (502, "backend_failed")
        assert len(engine.submissions) == 2
        assert sum(one.method == "POST" for one in cloud.exchanges) == 2


async def test_after_the_first_content_nobody_else_answers(tmp_path: Path) -> None:
    """The stream ends with an error, and without [DONE]."""
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["dead engine"]) as (app, engine):
        cloud.answers(dies_after(delta("one")))
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO, stream=True))
        assert "one" in reply.body.decode()
        assert b'"error"' in reply.body
        assert b"[DONE]" not in reply.body
        assert not engine.submissions
        assert sum(one.method == "POST" for one in cloud.exchanges) == 1


async def test_a_limit_of_the_tenant_holds_everywhere(tmp_path: Path) -> None:
    """Who has used up its tokens is not sent elsewhere for that."""
    trigger = Trigger(settings={"wait_s": 1.0}, script=lambda s: s.refuse(RejectReason.TENANT_RATE.value, 10, 5, 1_000_000))
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO))
        assert (reply.status, reply.error["code"]) == (429, "rate_limit_exceeded")
        assert not any(one.method == "POST" for one in cloud.exchanges)


async def test_who_leaves_ends_the_work_elsewhere(tmp_path: Path) -> None:
    """The connection there is closed at once."""
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["dead engine"]) as (app, _):
        cloud.answers(goes_on)
        sent = exchange(app, "POST", "/v1/chat/completions", chat_body("Hi", **AUTO | {"max_tokens": 4000}, stream=True)).open()
        assert await sent.start() == 200
        await sent.event()
        sent.disconnect()
        await sent.ended()
        posted = next(one for one in cloud.exchanges if one.method == "POST")
        await posted.gone.wait()


async def test_the_model_here_by_its_own_name_is_this_host_s(tmp_path: Path) -> None:
    """However long the wait is."""
    trigger = Trigger(settings={"wait_s": 1.0}, script=answers)
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi", max_tokens=5))
        assert (reply.status, reply.json()["model"]) == (200, MODEL)
        assert "x-poise-backend" not in reply.headers
        assert not any(one.method == "POST" for one in cloud.exchanges)


async def test_a_budget_that_is_gone_is_told_with_its_figures(tmp_path: Path) -> None:
    """Which, how much, until when; and no other cloud answers instead."""
    money = {"price_input": "1000", "price_output": "1000", "budget_day": "5", "output_tokens": 10}
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["asked by name"], money) as (app, _):
        cloud.answers(says("x", usage={"prompt_tokens": 5000, "completion_tokens": 1}))
        body = chat_body("Hi", max_tokens=5) | {"model": "cloud"}
        replies = [await ask(app, "POST", "/v1/chat/completions", body) for _ in range(2)]
        assert [reply.status for reply in replies] == [200, 429]
        assert replies[1].error["code"] == "budget_exhausted"
        assert "5.00 are spent" in replies[1].error["message"]
        assert int(replies[1].headers["retry-after"]) > 0
        assert sum(one.method == "POST" for one in cloud.exchanges) == 1


async def test_what_has_no_effect_there_is_named(tmp_path: Path) -> None:
    """Where the backend has no words for it."""
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["asked by name"]) as (app, _):
        reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi") | {"model": "cloud", "top_k": 7})
        assert "top_k" in reply.headers["x-poise-warning"]


async def test_a_label_of_a_model_holds_under_all_of_its_names(tmp_path: Path) -> None:
    """Its own, an alias, and with the name of a model there behind it."""
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["asked by name"]) as (app, _):
        for name in ("second", "other", "second/big"):
            reply = await ask(app, "POST", "/v1/chat/completions", chat_body("Hi") | {"model": name})
            assert (reply.status, "by model" in reply.error["message"]) == (403, True), name
