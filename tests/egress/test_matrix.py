"""What is sensitive never leaves: each place of a request under each trigger, with all that can make it so; and what is not,
leaves where the trigger says so, or nothing of this would show anything."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from poise.audit.log import AuditLog
from poise.config import Settings
from poise.gateway.app import Gateway
from poise.gateway.tenancy.auditing import Audit
from tests.egress.cloud import Cloud
from tests.egress.matrix import CHAT, CLAIMS, PLACES, TEXTS, TRIGGERS, WORDS, Trigger, engine_of, waits, word
from tests.gateway.fakes import OPERATOR, FakeEngine, Reply, ask, exchange, make_app, unpaced

N_CASES = int(os.environ.get("EGRESS_CASES", "700"))
"""Generated cases; `make egress` has 10,000."""


def settings_of(cloud: Cloud, trigger: Trigger, backend: dict[str, Any] | None = None, **tenant: Any) -> Settings:
    texts = {
        "egress": {"enabled": True, "words": WORDS, **trigger.settings},
        "audit": {"enabled": True},
        "backends": {
            "cloud": cloud.backend(ceiling="internal", **backend or {}),
            "second": cloud.backend(ceiling="internal", tier=1),
        },
        "tenants": {"local": {"egress": "allowed", "data_class": "internal", **tenant}},
        "data_classes": {"held-*": "confidential", "second": "confidential"},
        "aliases": {"held-auto": "auto", "held-cloud": "cloud", "other": "second"},
        "server": {"max_choices": 4},
    }
    return Settings.model_validate(unpaced().model_dump() | texts)


@asynccontextmanager
async def serving(
    tmp_path: Path, cloud: Cloud, trigger: Trigger, backend: dict[str, Any] | None = None, **tenant: Any
) -> AsyncIterator[tuple[Gateway, FakeEngine]]:
    settings, engine = settings_of(cloud, trigger, backend, **tenant), engine_of(trigger)
    audit = Audit(settings, AuditLog(tmp_path / "audit", b"k" * 32, rotate_bytes=1 << 26, keep_days=9))
    app = make_app(engine, settings, audit=audit)
    try:
        async with app.running():
            yield app, engine
    finally:
        audit.close()


def body_of(place: str, text: str, trigger: Trigger, mark: str) -> tuple[str, dict[str, Any]]:
    """A request that has a text in a place, and a mark by which it would be known again."""
    path, body = PLACES[place](text)
    body = {"model": trigger.model, "max_tokens": 5, **body, **trigger.body}
    filler = f"{mark} " + "word " * (600 if trigger.long else 1)
    if path == CHAT:
        body["messages"] = [*body["messages"][:-1], body["messages"][-1] | {"content": [*parts(body), text_part(filler)]}]
    elif isinstance(body["prompt"], list):
        body["prompt"] = [f"{filler} {one}" for one in body["prompt"]]
    else:
        body["prompt"] = f"{filler} {body['prompt']}"
    return path, body


def parts(body: dict[str, Any]) -> list[dict[str, Any]]:
    content = body["messages"][-1]["content"]
    return [text_part(content)] if isinstance(content, str) else content


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


async def prepare(app: Gateway, cloud: Cloud, trigger: Trigger) -> None:
    """The cloud does what the trigger wants it to do first, and what it failed at before is forgotten."""
    if trigger.cloud is not None:
        trigger.cloud(cloud)
        for name in ("cloud", "second"):
            await ask(app, "POST", f"/admin/backends/{name}/reset", headers=OPERATOR)


async def send(app: Gateway, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Reply:
    reply = await ask(app, "POST", path, body, headers=headers)
    assert reply.status in (200, 400, 403, 429, 502, 503), reply.body
    return reply


@pytest.mark.parametrize("name", TRIGGERS)
async def test_what_nothing_keeps_leaves_where_there_is_a_reason(tmp_path: Path, name: str) -> None:
    """So the other tests would see what leaves. Every place arrives there, too, as far as it is sent at all."""
    trigger = TRIGGERS[name]
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        for i, place in enumerate(PLACES):
            await prepare(app, cloud, trigger)
            mark, text = f"mark{i}mark", f"harmless{i}text"
            path, body = body_of(place, text, trigger, mark)
            if path != CHAT and trigger.chat_only:
                continue
            await send(app, path, body)
            if trigger.leaves:
                assert mark.encode() in cloud.received, f"{place}: it stayed"
                assert text.encode() in cloud.received or place in ("stop", "reasoning"), place
            elif trigger.model == "auto":
                assert mark.encode() not in cloud.received, f"{place}: it left"


@pytest.mark.parametrize("name", TRIGGERS)
async def test_what_is_sensitive_stays(tmp_path: Path, name: str) -> None:
    """Each place with each kind of text, under each trigger."""
    trigger, draw = TRIGGERS[name], random.Random(name)
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        for place in PLACES:
            for kind, make in TEXTS.items():
                await prepare(app, cloud, trigger)
                mark, text = word(draw), make(draw)
                path, body = body_of(place, text, trigger, mark)
                reply = await send(app, path, body)
                assert mark.encode() not in cloud.received, f"{kind} in {place} left: {reply.body!r}"
                assert text.encode() not in cloud.received


@pytest.mark.parametrize("name", TRIGGERS)
async def test_what_its_sender_or_its_name_keeps_stays(tmp_path: Path, name: str) -> None:
    """Header, model's name, and a conversation that was kept once, whatever is in the text."""
    trigger, draw = TRIGGERS[name], random.Random(name)
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        for place in PLACES:
            for claim in CLAIMS:
                mark = word(draw)
                path, body = body_of(place, "harmless", trigger, mark)
                await send(app, path, *claimed(claim, body))
                if claim == "conversation":
                    more = [*body.get("messages", []), {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
                    await send(app, path, body | ({"messages": more} if path == CHAT else {"model": "held-auto"}))
                assert mark.encode() not in cloud.received, f"{claim}, {place}"


def claimed(claim: str, body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    if claim == "model name":
        return body | {"model": "held-cloud" if body["model"].startswith("cloud") else "held-auto"}, {}
    return body, {"x-poise-data-class": "restricted" if claim == "header" else "confidential"}


@pytest.mark.parametrize(
    "tenant", [{"egress": "never"}, {"egress": "labelled"}, {"data_class": "confidential"}, {"backends": ["x"]}]
)
async def test_what_the_tenant_keeps_stays(tmp_path: Path, tenant: dict[str, Any]) -> None:
    """By its policy, its label, or the backends that it may use."""
    for name, trigger in TRIGGERS.items():
        async with Cloud() as cloud, serving(tmp_path / name, cloud, trigger, **tenant) as (app, _):
            for place in PLACES:
                path, body = body_of(place, "harmless", trigger, "mark")
                await send(app, path, body)
            assert b"mark" not in cloud.received, name


async def test_looking_sends_nothing(tmp_path: Path) -> None:
    """Counting tokens, explaining a route, listing models, health: whatever is asked with a text, the text stays."""
    trigger = TRIGGERS["dead engine"]
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, _):
        body = {"model": "auto", "messages": [{"role": "user", "content": "canary"}]}
        for path in ("/tokenize", "/apply-template", "/admin/route"):
            asked = {"body": body} if path == "/admin/route" else body
            await ask(app, "POST", path, asked, headers=OPERATOR)
        for path in ("/v1/models", "/health", "/metrics"):
            await ask(app, "GET", path)
        assert b"canary" not in cloud.received


async def test_generated_cases(tmp_path: Path) -> None:
    """Drawn from all of it, and put together: several places at once, streams, several choices, fallbacks forbidden or not."""
    draw = random.Random(os.environ.get("EGRESS_SEED", "17"))
    names = list(TRIGGERS)
    n_public = n_left = 0
    for name in names:
        trigger = TRIGGERS[name]
        async with Cloud() as cloud, serving(tmp_path / name, cloud, trigger) as (app, _):
            for _ in range(N_CASES // len(names) + 1):
                await prepare(app, cloud, trigger)
                mark, kind = word(draw), draw.choice([*TEXTS, *CLAIMS[:2], ""])
                text = TEXTS[kind](draw) if kind in TEXTS else "harmless"
                path, body = body_of(draw.choice(list(PLACES)), text, trigger, mark)
                body["stream"] = draw.random() < 0.5
                headers = {"x-poise-no-fallback": draw.choice("01")}
                if kind in CLAIMS:
                    body, more = claimed(kind, body)
                    headers |= more
                n_before = len(cloud.exchanges)
                await send(app, path, body, headers)
                left = any(mark.encode() in one.body for one in cloud.exchanges[n_before:])
                assert not (kind and left), f"{name}, {kind}: {json.dumps(body)} left"
                n_public, n_left = n_public + (not kind), n_left + left
    assert n_left > n_public * 0.3, "next to nothing leaves: this shows nothing"


async def test_explaining_a_route_changes_no_label(tmp_path: Path) -> None:
    """A conversation that was only asked about is not sensitive from then on."""
    async with Cloud() as cloud, serving(tmp_path, cloud, TRIGGERS["asked by name"]) as (app, _):
        body = {"model": "cloud", "max_tokens": 5, "messages": [{"role": "user", "content": "Once upon a time"}]}
        asked = await ask(app, "POST", "/admin/route", {"body": body, "data_class": "restricted"}, headers=OPERATOR)
        assert (asked.json()["label"], asked.json()["order"]) == ("restricted", [])
        await send(app, CHAT, body)
        assert b"Once upon a time" in cloud.received


async def test_a_door_that_opens_later_lets_nothing_unread_through(tmp_path: Path) -> None:
    """The door opens while the engine thinks: what is sensitive has its label all the same, and stays; what is not leaves."""
    trigger = Trigger(settings={"wait_s": 1.0})
    async with Cloud() as cloud, serving(tmp_path, cloud, trigger) as (app, engine):
        for n, text in ((1, "My card is 4111 1111 1111 1111"), (2, "Once upon a time")):
            await ask(app, "POST", "/admin/egress/close", headers=OPERATOR)
            sent = exchange(app, "POST", CHAT, {"model": "auto", "messages": [{"role": "user", "content": text}]}).open()
            submission = await engine.submitted(n)
            await ask(app, "POST", "/admin/egress/open", headers=OPERATOR)
            waits(submission)
            await sent.reply()
        assert b"4111" not in cloud.received
        assert b"Once upon a time" in cloud.received
