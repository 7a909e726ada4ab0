"""The explanation over HTTP: who is told what of whom, and what the samples and the store of records add to it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.app import Gateway
from poise.gateway.condition.history import History
from tests.gateway.fakes import FakeEngine, ask, chat_body, exchange, make_app, says, status

CHAT = "/v1/chat/completions"
KEYS = {"auth": {"admin_key": "key-of-the-root", "keys": {"a": "key-of-alice", "b": "key-of-bobby"}}}


async def explained(app: Gateway, path: str, key: str) -> dict[str, Any]:
    reply = await ask(app, "GET", f"{path}/explanation", headers={"x-api-key": key})
    assert reply.status == 200, reply.body
    return dict(reply.json())


async def test_who_is_told_what() -> None:
    """Its tenant: with ids of its own requests. An operator: with all. Another tenant: there is no such request."""
    engine = FakeEngine()
    app = make_app(engine, Settings.model_validate(KEYS))
    first = exchange(app, "POST", CHAT, chat_body(stream=True), headers={"x-api-key": "key-of-bobby"}).open()
    running = await engine.submitted()
    running.accept()
    running.start()
    running.say("secret")
    other_id = dict((await first.message())["headers"])[b"x-poise-response-id"].decode()
    second = exchange(app, "POST", CHAT, chat_body(), headers={"x-api-key": "key-of-alice", "x-request-id": "mine"}).open()
    waiting = await engine.submitted(2)
    waiting.accept(position=1, eta_us=700_000)
    running.prefill(16)
    own = await explained(app, "/v1/requests/mine", "key-of-alice")
    assert own["figures"]["queue"]["others"] == [
        {
            "class": "interactive",
            "same_tenant": False,
            "requests": 1,
            "slots": 1,
            "prompt_tokens": 16,
            "output_tokens": 0,
            "ids": [],
        }
    ]
    assert (own["figures"]["queue"]["over"], own["figures"]["queue"]["estimate_ms"]) == (False, 700)
    for path in (f"/v1/requests/{own['id']}", f"/admin/requests/{own['id']}", "/admin/requests/mine"):
        told = await explained(app, path, "key-of-the-root")
        assert told["figures"]["queue"]["others"][0]["ids"] == [other_id]
    assert (await ask(app, "GET", f"/v1/requests/{own['id']}/explanation", headers={"x-api-key": "key-of-bobby"})).status == 404
    assert (
        await ask(app, "GET", f"/admin/requests/{own['id']}/explanation", headers={"x-api-key": "key-of-alice"})
    ).status == 401
    missing = await ask(app, "GET", "/admin/requests/nobody/explanation", headers={"x-api-key": "key-of-the-root"})
    assert (missing.status, missing.error["code"]) == (404, "request_not_found")
    waiting.start()
    waiting.say("secret")
    waiting.finish()
    running.finish()
    await second.ended()
    await first.ended()
    ended = await explained(app, f"/admin/requests/{own['id']}", "key-of-the-root")
    assert (ended["figures"]["outcome"], ended["timeline"][-1]["what"]) == ("stop", "finished")
    assert "secret" not in str(ended)


async def test_the_pool_and_the_limits_are_the_servers() -> None:
    """Slots as they were built; the class's and the tenant's from the settings."""
    settings = Settings.model_validate({"tenants": {"local": {"running_max": 1}}})
    app = make_app(FakeEngine(says("x")), settings)
    reply = await ask(app, "POST", CHAT, chat_body())
    told = await explained(app, f"/v1/requests/{reply.json()['id']}", "")
    queue = told["figures"]["queue"]
    assert (queue["pool"], queue["slots"], queue["slots_held"]) == ("short", 4, 0)


async def test_samples_of_its_time_say_what_limited_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were taken while it waited, and no others."""
    engine = FakeEngine()
    app = make_app(engine)
    history: History = app.history
    asked = exchange(app, "POST", CHAT, chat_body(), headers={"x-request-id": "mine"}).open()
    (await engine.submitted()).accept()
    before = await explained(app, "/v1/requests/mine", "")
    assert before["figures"]["queue"]["limited"] == {}
    engine.state.status = status()
    monkeypatch.setattr(history, "_wall_clock", lambda: time.time() + 0.5)  # in the second after its arrival
    history.sample()
    told = await explained(app, "/v1/requests/mine", "")
    assert told["figures"]["queue"]["limited"] == {"compute": 1.0}
    assert told["figures"]["queue"]["levels"] == ["normal"]
    assert history.between(time.time() + 5, time.time() + 6) == []
    assert history.between(time.time() - 9, time.time() - 8) == []
    engine.submissions[0].finish()
    await asked.ended()


async def test_what_is_no_longer_kept_is_said_to_be_missing() -> None:
    """A request that ended before it began is not missed."""
    engine = FakeEngine(says("x"))
    app = make_app(engine)
    gone = (await ask(app, "POST", CHAT, chat_body())).json()["id"]
    await ask(app, "DELETE", f"/v1/requests/{gone}")
    engine.script = None
    asked = exchange(app, "POST", CHAT, chat_body(), headers={"x-request-id": "mine"}).open()
    (await engine.submitted(2)).accept()
    assert not (await explained(app, "/v1/requests/mine", ""))["figures"]["others_missing"]
    engine.script = says("x")
    other = (await ask(app, "POST", CHAT, chat_body())).json()["id"]
    await ask(app, "DELETE", f"/v1/requests/{other}")
    assert (await explained(app, "/v1/requests/mine", ""))["figures"]["others_missing"]
    engine.submissions[1].finish()
    await asked.ended()
