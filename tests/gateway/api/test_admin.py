"""What operators do with live requests and with what is cached for a tenant."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from poise.config import Settings
from poise.gateway.api.native.admin import ControlResult, LiveRequestList, RequestView
from poise.gateway.app import Gateway
from poise.gateway.supervision.blame import QuarantineReport, utc
from poise.gateway.supervision.engine import EnginePhase
from tests.gateway.fakes import OPERATOR, Exchange, FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body, says

CHAT = "/v1/chat/completions"


async def live(app: Gateway) -> list[dict[str, Any]]:
    reply = await ask(app, "GET", "/admin/requests", headers=OPERATOR)
    assert reply.status == 200
    return list(reply.json()["data"])


async def running(app: Gateway, engine: FakeEngine, **arguments: Any) -> tuple[Exchange, Submission]:
    """A stream of one choice that has its slot."""
    n = len(engine.submissions)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True), **arguments).open()
    request = await engine.submitted(n + 1)
    request.accept()
    await asked.start()
    request.start(n_cached=8)
    request.say("x")
    await asked.event()
    return asked, request


async def test_live_requests_are_listed_with_their_states() -> None:
    """Counts and no text; those that have ended are gone."""
    engine = FakeEngine()
    app = make_app(engine)
    assert await live(app) == []
    asked, request = await running(app, engine, headers={"x-request-id": "mine"})
    (row,) = await live(app)
    assert row["id"].startswith("chatcmpl-")
    assert row.pop("age_ms") >= 0
    assert row == {
        "id": row["id"],
        "request_id": "mine",
        "tenant": "local",
        "class": "interactive",
        "state": "running",
        "choices": 1,
        "prompt_tokens": 21,
        "output_tokens": 1,
        "cached_tokens": 8,
    }
    for what, state in (("pause", "paused"), ("swap", "swapped"), ("drop", "queued"), ("resume", "running")):
        request.change(what)
        await asked.frame()
        assert (await live(app))[0]["state"] == state
    request.change("downgrade", "operator")
    await asked.frame()
    assert (await live(app))[0]["class"] == "background"
    request.finish()
    await asked.ended()
    assert await live(app) == []


async def test_a_request_that_does_not_stream_is_listed_too() -> None:
    """Queued until its first choice starts; gone when its client is."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", "/v1/completions", prompt_body(n=2)).open()
    await engine.submitted(2)
    (row,) = await live(app)
    assert row["id"].startswith("cmpl-")
    assert (row["state"], row["choices"], row["prompt_tokens"]) == ("queued", 2, 2)
    asked.disconnect()
    await asked.ended()
    assert await live(app) == []


async def test_a_refused_request_is_not_listed() -> None:
    """Nothing of it is left behind."""
    engine = FakeEngine(lambda s: s.refuse("queue_full", 1, 1))
    app = make_app(engine)
    await ask(app, "POST", CHAT, chat_body())
    assert await live(app) == []


async def test_requests_that_have_ended_are_listed_when_asked_for() -> None:
    """The newest first, as many as are wanted, with how they ended; no text, and no error's words."""
    engine = FakeEngine(says("secret words"))
    app = make_app(engine)
    for name in ("first", "second"):
        await ask(app, "POST", CHAT, chat_body(n=2), headers={"x-request-id": name})

    def fails(submission: Submission) -> None:
        submission.accept()
        submission.start()
        submission.say("x")
        submission.finish("failed", "its own words")

    engine.script = fails
    await ask(app, "POST", CHAT, chat_body(), headers={"x-request-id": "third"})
    assert (await ask(app, "GET", "/admin/requests", headers=OPERATOR)).json()["ended"] == []
    reply = await ask(app, "GET", "/admin/requests?ended=2", headers=OPERATOR)
    third, second = msgspec.json.decode(reply.body, type=LiveRequestList).ended
    assert (third.request_id, third.outcome, third.error) == ("third", "failed", "internal_error")
    assert (second.request_id, second.outcome, second.error) == ("second", "stop", None)
    assert (second.choices, second.output_tokens, second.tenant) == (2, 24, "local")
    assert second.age_ms >= second.took_ms >= 0
    assert b"secret" not in reply.body
    assert b"its own words" not in reply.body


@pytest.mark.parametrize("ended", ["-1", "201", "9999", "x", "", "1.0"])
async def test_how_many_ended_ones_is_bounded(ended: str) -> None:
    """In the API's own format."""
    reply = await ask(make_app(FakeEngine()), "GET", f"/admin/requests?ended={ended}", headers=OPERATOR)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_value", "ended")


async def test_one_request_is_told_with_its_timeline() -> None:
    """Live and ended, of any tenant, by either id while it is live; never its text."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request = await running(app, engine, headers={"x-request-id": "mine", "x-api-key": "somebody's"})
    request.change("pause")
    await asked.frame()
    request_id = (await live(app))[0]["id"]
    for known_as in (request_id, "mine"):
        reply = await ask(app, "GET", f"/admin/requests/{known_as}", headers=OPERATOR)
        view = msgspec.json.decode(reply.body, type=RequestView)
        assert (reply.status, view.id, view.state, view.took_ms, view.outcome) == (200, request_id, "paused", None, None)
        assert [moment.what for moment in view.timeline] == ["arrived", "queued", "started", "first_token", "pause"]
    assert view.tenant.startswith("key-")
    (choice,) = view.choices
    assert (choice.state, choice.output_tokens, choice.cached_tokens) == ("paused", 1, 8)
    request.change("resume")
    request.say("secret")
    request.finish()
    await asked.ended()
    reply = await ask(app, "GET", f"/admin/requests/{request_id}", headers=OPERATOR)
    view = msgspec.json.decode(reply.body, type=RequestView)
    assert (view.state, view.outcome, view.choices[0].finish_reason) == ("ended", "stop", "stop")
    assert view.timeline[-1].what == "finished"
    assert b"secret" not in reply.body
    reply = await ask(app, "GET", "/admin/requests/chatcmpl-1", headers=OPERATOR)
    assert (reply.status, reply.error["code"]) == (404, "request_not_found")
    assert "ended=200" in reply.error["message"]


async def test_an_operator_cancels_a_request() -> None:
    """Whoever's it is: its client gets what there is, and it is gone from the engine. Once is enough."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, _ = await running(app, engine, headers={"x-api-key": "somebody's"})
    path = f"/admin/requests/{(await live(app))[0]['id']}/cancel"
    body = msgspec.json.decode((await ask(app, "POST", path, headers=OPERATOR)).body, type=ControlResult)
    assert (body.action, [choice.state for choice in body.choices]) == ("cancel", ["ended"])
    assert engine.aborted == [1]
    await asked.ended()
    assert await live(app) == []
    (row,) = (await ask(app, "GET", "/admin/requests?ended=1", headers=OPERATOR)).json()["ended"]
    assert (row["outcome"], row["output_tokens"]) == ("cancelled", 1)
    reply = await ask(app, "POST", path, headers=OPERATOR)
    assert (reply.status, reply.error["code"]) == (404, "request_not_found")


@pytest.mark.parametrize("action", ["pause", "resume", "downgrade"])
async def test_an_action_reaches_every_choice(action: str) -> None:
    """Under the id of the response, or the request's own."""
    engine = FakeEngine(lambda s: s.accept())
    app = make_app(engine)
    headers = {"x-request-id": "mine"}
    asked = exchange(app, "POST", CHAT, chat_body(stream=True, n=2), headers=headers).open()
    await asked.start()
    (row,) = await live(app)
    for known_as in (row["id"], "mine"):
        engine.controlled.clear()
        reply = await ask(app, "POST", f"/admin/requests/{known_as}/{action}", headers=OPERATOR)
        body = msgspec.json.decode(reply.body, type=ControlResult)
        assert (reply.status, body.id, body.action) == (200, row["id"], action)
        assert [choice.index for choice in body.choices] == [0, 1]
        assert engine.controlled == [(1, action), (2, action)]
    asked.disconnect()
    await asked.ended()


async def test_what_the_engine_cannot_do_is_409_with_its_reason() -> None:
    """Unless some choice could be acted on."""
    engine = FakeEngine(lambda s: s.accept())
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True, n=2)).open()
    await asked.start()
    path = f"/admin/requests/{(await live(app))[0]['id']}/resume"
    engine.control_answers = {1: ("running", "it is not paused"), 2: ("waiting", "it is not paused")}
    reply = await ask(app, "POST", path, headers=OPERATOR)
    assert (reply.status, reply.error["code"], reply.error["type"]) == (409, "not_possible", "conflict_error")
    assert "it is not paused" in reply.error["message"]
    engine.control_answers = {1: ("", "there is no such live request"), 2: ("waiting", "")}
    reply = await ask(app, "POST", path, headers=OPERATOR)
    assert [choice["state"] for choice in reply.json()["choices"]] == ["ended", "queued"]
    asked.disconnect()
    await asked.ended()


async def test_unknown_requests_are_404() -> None:
    """Those that never were, those that the engine has just ended, and ids that more than one request goes by."""
    engine = FakeEngine(lambda s: s.accept())
    app = make_app(engine)
    assert (await ask(app, "POST", "/admin/requests/chatcmpl-1/pause", headers=OPERATOR)).error["code"] == "request_not_found"
    exchanges = []
    for _ in range(2):
        exchanges.append(exchange(app, "POST", CHAT, chat_body(stream=True), headers={"x-request-id": "twice"}).open())
        await exchanges[-1].start()
    assert (await ask(app, "POST", "/admin/requests/twice/pause", headers=OPERATOR)).status == 404
    engine.control_answers = {1: ("", "there is no such live request")}
    assert (await ask(app, "POST", f"/admin/requests/{(await live(app))[0]['id']}/pause", headers=OPERATOR)).status == 404
    assert (await ask(app, "POST", f"/admin/requests/{(await live(app))[0]['id']}/stop", headers=OPERATOR)).status == 404
    for asked in exchanges:
        asked.disconnect()
        await asked.ended()


async def test_forgetting_what_is_cached_for_a_tenant() -> None:
    """The engine says what it freed."""
    engine = FakeEngine()
    reply = await ask(make_app(engine), "DELETE", "/admin/tenants/key-0123/cache", headers=OPERATOR)
    assert reply.json() == {"tenant": "key-0123", "entries": 3, "cells": 128}
    assert engine.forgotten == ["key-0123"]


ENDPOINTS = [
    ("GET", "/admin/requests"),
    ("GET", "/admin/requests/x"),
    ("POST", "/admin/requests/x/cancel"),
    ("POST", "/admin/requests/x/pause"),
    ("DELETE", "/admin/tenants/x/cache"),
    ("DELETE", "/admin/tenants/x/data"),
    ("GET", "/admin/journal"),
    ("GET", "/admin/quarantine"),
]


@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
async def test_only_operators_may(method: str, path: str) -> None:
    """With an admin key from anywhere, with the server's token on its machine; nothing is done for others."""
    engine = FakeEngine()
    keyed = make_app(
        engine, Settings.model_validate({"auth": {"admin_key": "secret-of-the-boss", "keys": {"a": "key-of-a-tenant"}}})
    )
    for headers in ({}, {"authorization": "Bearer key-of-a-tenant"}, {"x-api-key": "po-a-guess"}):
        reply = await ask(keyed, method, path, headers=headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_admin_key")
        assert "poise top" in reply.error["message"], "how its user gets in is told"
    reply = await ask(keyed, method, path, headers=OPERATOR, client="192.0.2.1")
    assert (reply.status, reply.error["code"]) == (403, "admin_is_local")
    assert not engine.erased
    for headers, client in (({"authorization": "Bearer secret-of-the-boss"}, "192.0.2.1"), (OPERATOR, "127.0.0.1")):
        reply = await ask(keyed, method, path, headers=headers, client=client)
        assert reply.status in (200, 404)
    assert not engine.controlled
    assert len(engine.erased) == 2 * (path == "/admin/tenants/x/data")


async def test_without_an_engine_it_is_503() -> None:
    """The list is the gateway's own."""
    engine = FakeEngine(lambda s: s.accept())
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True)).open()
    await asked.start()
    (row,) = await live(app)
    engine.state.phase = EnginePhase.RESTARTING
    for method, path in (("POST", f"/admin/requests/{row['id']}/pause"), ("DELETE", "/admin/tenants/x/cache")):
        reply = await ask(app, method, path, headers=OPERATOR)
        assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
    assert [listed["id"] for listed in await live(app)] == [row["id"]]
    asked.disconnect()
    await asked.ended()


async def test_the_quarantine_is_listed() -> None:
    """Sizes, times and how the engines ended; also without an engine, when it is wanted most."""
    engine = FakeEngine()
    engine.reports = [
        QuarantineReport(
            request_id="req-1",
            request_class="interactive",
            engine_request=17,
            tenant="t",
            prompt_tokens=812,
            output_tokens=40,
            deaths=2,
            ended_by="SIGSEGV",
            accepted_at=utc(0),
            quarantined_at=utc(1),
        )
    ]
    engine.state.phase = EnginePhase.RESTARTING
    reply = await ask(make_app(engine), "GET", "/admin/quarantine", headers=OPERATOR)
    (report,) = reply.json()["data"]
    assert (report["request_id"], report["class"], report["deaths"]) == ("req-1", "interactive", 2)
    assert report["accepted_at"] == "1970-01-01T00:00:00.000Z"


async def test_a_request_is_reported_under_the_id_that_its_client_knows() -> None:
    """The engine is given the X-Request-Id as its label."""
    engine = FakeEngine(lambda s: s.finish())
    await ask(make_app(engine), "POST", CHAT, chat_body(), headers={"x-request-id": "mine-1"})
    assert engine.submissions[0].label == "mine-1"


async def test_a_full_server_can_be_acted_on() -> None:
    """What fills it is what an operator wants to see."""
    engine = FakeEngine()
    app = make_app(engine, Settings.model_validate({"server": {"max_connections": 1}}))
    asked, _ = await running(app, engine)
    assert len(await live(app)) == 1
    assert (await ask(app, "GET", "/v1/models")).status == 503
    asked.disconnect()
    await asked.ended()


async def test_erasing_what_is_held_of_a_tenant() -> None:
    """Its live requests go on unless they are to end, too; the answer says how much there was of what."""
    engine = FakeEngine(lambda s: s.accept())
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True)).open()
    await asked.start()
    reply = await ask(app, "DELETE", "/admin/tenants/local/data", headers=OPERATOR)
    counts = {"entries": 3, "cells": 128, "bytes": 4096, "journal_entries": 7}
    counts |= {"results": 0, "result_tokens": 0, "result_bytes": 0, "counted_choices": 0, "audit_contents": 0, "grammars": 0}
    counts |= {"quarantine_reports": 0}
    assert reply.json() == {"tenant": "local", "live_ended": 0, "live_kept": 1, "erased": counts}
    assert (engine.erased, engine.aborted) == (["local"], [])
    assert (await ask(app, "DELETE", "/admin/tenants/other/data?live=1", headers=OPERATOR)).json()["live_ended"] == 0
    assert not engine.aborted
    assert (await ask(app, "DELETE", "/admin/tenants/local/data?live=1", headers=OPERATOR)).json()["live_ended"] == 1
    assert engine.aborted == [1]
    await asked.ended()
    engine.script = says("kept")
    await ask(app, "POST", CHAT, chat_body())
    erased = (await ask(app, "DELETE", "/admin/tenants/local/data", headers=OPERATOR)).json()["erased"]
    assert (erased["results"], erased["result_tokens"], erased["counted_choices"]) == (1, 4, 1)
    assert erased["result_bytes"] > 0
    assert (await ask(app, "GET", "/v1/requests")).json()["data"] == []
    assert (await ask(app, "DELETE", "/admin/tenants/local/data?live=yes", headers=OPERATOR)).error["param"] == "live"


async def test_an_engine_that_is_gone_holds_nothing() -> None:
    """Its memory went with it."""
    engine = FakeEngine()
    engine.state.phase = EnginePhase.RESTARTING
    reply = await ask(make_app(engine), "DELETE", "/admin/tenants/local/data", headers=OPERATOR)
    assert (reply.status, reply.json()["erased"]["cells"], engine.erased) == (200, 0, [])
