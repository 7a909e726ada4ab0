"""What a caller does with requests of its own: look, cancel, leave and come back, erase. Nothing of it is seen by others."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from poise.config import Settings
from poise.gateway.api.native.requests import EraseResult, RequestReport
from poise.gateway.app import Gateway
from tests.gateway.fakes import OPERATOR, Exchange, FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body, says

CHAT, COMPLETIONS, REQUESTS = "/v1/chat/completions", "/v1/completions", "/v1/requests"
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def report(app: Gateway, request_id: str, **arguments: Any) -> dict[str, Any]:
    reply = await ask(app, "GET", f"{REQUESTS}/{request_id}", **arguments)
    assert reply.status == 200, reply.body
    return dict(reply.json())


async def begun(app: Gateway, engine: FakeEngine, text: str = "Hello", **parameters: Any) -> tuple[Exchange, Submission, str]:
    """A stream whose first choice has said something, and the id of the response."""
    asked = exchange(app, "POST", CHAT, chat_body(stream=True, **parameters)).open()
    request = await engine.submitted(len(engine.submissions) + 1)
    for submission in engine.submissions:
        if not submission.handle.done:
            submission.accept()
    head = await asked.message()
    request.start(n_cached=8)
    request.say(text)
    await asked.event()
    return asked, request, dict(head["headers"])[b"x-poise-response-id"].decode()


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])


async def test_a_request_is_told_while_it_runs_and_after_it() -> None:
    """State, timeline, tokens and text so far; then how it ended."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request, response_id = await begun(app, engine)
    request.change("pause")
    body = await report(app, response_id)
    assert (body["state"], body["outcome"], body["class"], body["background"]) == ("paused", None, "interactive", False)
    assert body["choices"] == [
        {"index": 0, "state": "paused", "tokens": 5, "text": "Hello", "finish_reason": None, "outcome": None}
    ]
    assert body["usage"]["completion_tokens"] == 5
    request.change("resume")
    request.finish("length")
    await asked.ended()
    body = await report(app, response_id)
    assert (body["state"], body["outcome"], body["error"]) == ("ended", "length", None)
    assert body["choices"][0]["finish_reason"] == "length"
    told = [moment["what"] for moment in body["timeline"]]
    assert told == ["arrived", "queued", "started", "first_token", "pause", "resume", "finished"]
    times = [moment["ms"] for moment in body["timeline"]]
    assert times == sorted(times)
    started = body["timeline"][2]
    assert (started["pool"], started["cached_tokens"], started["wait_ms"], started["choice"]) == ("short", 8, 1, 0)


async def test_the_chunks_of_a_prompt_are_on_the_timeline() -> None:
    """The first ones each; many later ones in a bounded number of moments, with all that they computed."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True, n=2), headers={"x-request-id": "mine"}).open()
    await engine.submitted(2)
    for request in engine.submissions:
        request.accept()
        request.start()
    for i in range(3000):
        engine.submissions[i % 2].prefill(16, 2000, n_beside=i % 2)
    moments = [m for m in (await report(app, "mine"))["timeline"] if m["what"] == "prefill"]
    first = [m for m in moments if m["choice"] == 0]
    assert [m["chunks"] for m in first[:17]] == [1] * 17
    assert len(first) < 120
    for key, whole in (("chunks", 1500), ("computed_tokens", 24_000), ("pass_us", 3_000_000), ("beside_tokens", 0)):
        assert sum(m[key] for m in first) == whole
    assert sum(m["beside_tokens"] for m in moments) == 1500
    assert all(m["ms"] <= m["until_ms"] for m in moments)
    engine.submissions[0].change("swap")
    engine.submissions[0].change("resume")
    engine.submissions[0].prefill(16)
    assert (await report(app, "mine"))["timeline"][-1]["chunks"] == 1, "what was computed after a swap is another matter"
    for request in engine.submissions:
        request.say("x")
        request.finish()
    reply = await asked.reply()
    assert b": prefill" not in reply.body


async def test_what_a_cancelled_request_cost_is_known_when_the_engine_has_said_it() -> None:
    """Its last word comes after the end."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, _, response_id = await begun(app, engine)
    await ask(app, "POST", f"{REQUESTS}/{response_id}/cancel")
    await asked.ended()
    explained = (await ask(app, "GET", f"{REQUESTS}/{response_id}/explanation")).json()
    assert explained["figures"]["engine_ms"] == 1


async def test_own_requests_are_listed_without_text() -> None:
    """The newest first; those of another tenant are not there."""
    app = make_app(FakeEngine(says("secret")))
    for key in ("a", "b", "a"):
        await ask(app, "POST", CHAT, chat_body(), headers={"x-api-key": key})
    reply = await ask(app, "GET", REQUESTS, headers={"x-api-key": "a"})
    rows = reply.json()["data"]
    assert len(rows) == 2
    assert b"secret" not in reply.body
    assert (await ask(app, "GET", REQUESTS)).json()["data"] == []


ACTIONS = [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/stream"), ("GET", "/explanation")]


@pytest.mark.parametrize(("method", "action"), ACTIONS)
async def test_another_tenants_request_looks_like_none(method: str, action: str) -> None:
    """Neither its existence nor anything of it is told, and nothing is done to it; also by its X-Request-Id."""
    engine = FakeEngine()
    app = make_app(engine)
    headers = {"x-api-key": "a", "x-request-id": "mine"}
    asked = exchange(app, "POST", CHAT, chat_body(stream=True), headers=headers).open()
    (await engine.submitted()).accept()
    response_id = dict((await asked.message())["headers"])[b"x-poise-response-id"].decode()
    for name in (response_id, "mine"):
        there = await ask(app, method, f"{REQUESTS}/{name}{action}", headers={"x-api-key": "b"})
        nowhere = await ask(app, method, f"{REQUESTS}/{name[::-1]}{action}", headers={"x-api-key": "b"})
        assert (there.status, there.error["code"]) == (404, "request_not_found")
        assert there.body.replace(name.encode(), b"") == nowhere.body.replace(name[::-1].encode(), b"")
    assert not engine.aborted
    own = await ask(app, "GET", f"{REQUESTS}/mine", headers={"x-api-key": "a"})
    assert own.json()["id"] == response_id
    asked.disconnect()
    await asked.ended()


@pytest.mark.parametrize("operator", [{"x-api-key": "key-of-the-root"}, OPERATOR])
async def test_operators_find_every_request_and_read_no_text(operator: dict[str, str]) -> None:
    """How it stands, why it was slow, and ending it: yes. What was answered is its tenant's, in whatever form."""
    settings = Settings.model_validate(
        {"auth": {"admin_key": "key-of-the-root", "keys": {"a": "key-of-alice", "b": "key-of-bobby"}}}
    )
    app = make_app(FakeEngine(says("xyzzy")), settings)
    reply = await ask(app, "POST", CHAT, chat_body(), headers={"x-api-key": "key-of-alice"})
    response_id = reply.headers["x-poise-response-id"]
    assert response_id == reply.json()["id"]
    told = await report(app, response_id, headers=operator)
    assert (told["outcome"], told["choices"][0]["tokens"], told["choices"][0]["text"]) == ("stop", 5, None)
    assert (await report(app, response_id, headers={"x-api-key": "key-of-alice"}))["choices"][0]["text"] == "xyzzy"
    for method, action in (("GET", ""), ("GET", "/explanation"), ("POST", "/cancel"), ("GET", "/stream"), ("DELETE", "")):
        reply = await ask(app, method, f"{REQUESTS}/{response_id}{action}", headers=operator)
        assert b"xyzzy" not in reply.body
        if action == "/stream":
            assert (reply.status, reply.error["code"]) == (403, "text_is_the_tenants")
        else:
            assert reply.status == 200
    assert (await ask(app, "GET", f"{REQUESTS}/{response_id}", headers={"x-api-key": "key-of-alice"})).status == 404, "erased"
    assert (await ask(app, "GET", f"{REQUESTS}/{response_id}", headers={"x-api-key": "key-of-bobby"})).status == 404


async def test_a_cancelled_stream_is_told_so_and_its_text_is_kept() -> None:
    """The outcome of every choice, under a finish_reason that strict clients know, then [DONE]; the engine is told at once."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, _, response_id = await begun(app, engine, n=2)
    reply = await ask(app, "POST", f"{REQUESTS}/{response_id}/cancel")
    body = msgspec.json.decode(reply.body, type=RequestReport)
    assert (reply.status, body.state, body.outcome) == (200, "ended", "cancelled")
    assert [choice.text for choice in body.choices] == ["Hello", ""]
    assert sorted(engine.aborted) == [1, 2]
    frames = [await asked.event() for _ in range(2)]
    assert [frame["choices"][0]["finish_reason"] for frame in frames] == ["length", "length"]
    assert [frame.get("poise") for frame in frames] == [{"outcome": "cancelled"}] * 2
    assert await asked.frame() == "[DONE]"
    await asked.ended()
    again = await ask(app, "POST", f"{REQUESTS}/{response_id}/cancel")
    assert again.json()["timeline"] == reply.json()["timeline"]
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_requests_total{class="interactive",outcome="cancelled"} 2.0' in metrics
    assert 'poise_client_disconnects_total{class="interactive"} 0.0' in metrics
    assert 'poise_cancel_seconds_count{class="interactive"} 2.0' in metrics


async def test_a_cancelled_whole_answer_is_what_there_is() -> None:
    """As a body, with what was held back of it."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", COMPLETIONS, prompt_body(stop="END"), headers={"x-request-id": "mine"}).open()
    request = await engine.submitted()
    request.accept()
    request.say("one EN")
    assert (await report(app, "mine"))["choices"][0]["text"] == "one "
    await ask(app, "POST", f"{REQUESTS}/mine/cancel")
    answer = (await asked.reply()).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("one EN", "length")
    assert answer["poise"] == {"outcome": "cancelled"}


@STREAM
@pytest.mark.parametrize("accepted", [False, True])
async def test_cancelling_what_waits(stream: bool, accepted: bool) -> None:
    """In the queue, and before the engine has said a word."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=stream), headers={"x-request-id": "mine"}).open()
    request = await engine.submitted()
    if accepted:
        request.accept(position=9, eta_us=60_000_000)
    assert (await report(app, "mine"))["state"] == "queued"
    await ask(app, "POST", f"{REQUESTS}/mine/cancel")
    reply = await asked.reply()
    assert reply.status == 200
    last = reply.chunks[-1] if stream else reply.json()
    assert (last["choices"][0]["finish_reason"], last["poise"]) == ("length", {"outcome": "cancelled"})
    assert engine.aborted == [1]


async def test_what_the_engine_says_after_a_cancel_is_not_heard() -> None:
    """Tokens may be on their way."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request, response_id = await begun(app, engine)
    await ask(app, "POST", f"{REQUESTS}/{response_id}/cancel")
    request.say("late")
    request.finish("length")
    assert (await report(app, response_id))["choices"][0]["text"] == "Hello"
    await asked.ended()


def detached(how: str) -> tuple[dict[str, Any], dict[str, str]]:
    return ({"background": True}, {}) if how == "body" else ({}, {"x-poise-detach": "1"})


@STREAM
@pytest.mark.parametrize("how", ["body", "header"])
@pytest.mark.parametrize("accepted", [False, True])
async def test_a_detached_request_goes_on_without_its_client(how: str, stream: bool, accepted: bool) -> None:
    """Wherever it stands; its result is there afterwards, and it is no disconnect."""
    engine = FakeEngine()
    app = make_app(engine)
    parameters, headers = detached(how)
    body = chat_body(stream=stream, **parameters)
    asked = exchange(app, "POST", CHAT, body, headers=headers | {"x-request-id": "mine"}).open()
    request = await engine.submitted()
    if accepted:
        request.accept()
        if stream:
            await asked.start()
    asked.disconnect()
    await asked.ended()
    if not accepted:
        request.accept()
    request.start()
    request.say("all of it")
    assert (await report(app, "mine"))["state"] == "running"
    request.finish()
    told = await report(app, "mine")
    assert (told["outcome"], told["background"]) == ("stop", True)
    assert told["choices"][0]["text"] == "all of it"
    assert not engine.aborted
    assert b'poise_client_disconnects_total{class="interactive"} 0.0' in (await ask(app, "GET", "/metrics")).body


async def test_a_detached_request_that_is_refused_leaves_nothing() -> None:
    """Its client left before the engine's answer; it is counted as rejected once."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(background=True), headers={"x-request-id": "mine"}).open()
    request = await engine.submitted()
    asked.disconnect()
    await asked.ended()
    request.refuse("queue_full", 1, 1)
    assert (await ask(app, "GET", f"{REQUESTS}/mine")).status == 404
    assert b'poise_rejected_total{class="interactive",reason="queue_full"} 1.0' in (await ask(app, "GET", "/metrics")).body


@pytest.mark.parametrize("value", ["true", "yes", "2"])
async def test_a_header_that_means_nothing_is_refused(value: str) -> None:
    """It would be ignored in silence."""
    reply = await ask(make_app(FakeEngine()), "POST", CHAT, chat_body(), headers={"x-poise-detach": value})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "invalid_value", "X-Poise-Detach")


async def test_a_stream_is_taken_up_again_while_it_runs() -> None:
    """At a token, after its client left; and it may have more than one reader."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request, response_id = await begun(app, engine, background=True, stream_options={"include_usage": True})
    asked.disconnect()
    await asked.ended()
    request.say(" wor")
    again = exchange(app, "GET", f"{REQUESTS}/{response_id}/stream?from=5").open()
    other = exchange(app, "GET", f"{REQUESTS}/{response_id}/stream", headers={"last-event-id": "2"}).open()
    whole = exchange(app, "GET", f"{REQUESTS}/{response_id}/stream").open()
    for reader, text in ((again, " wor"), (other, "llo wor"), (whole, "Hello wor")):
        assert await reader.start() == 200
        assert (await reader.event())["choices"][0]["delta"]["content"] == text
    request.say("ld")
    request.finish()
    for reader in (again, other, whole):
        await reader.ended()
    assert not engine.aborted
    last = await again.event()
    assert last["choices"][0]["delta"] == {"content": "ld"}
    assert (await again.event())["choices"][0]["finish_reason"] == "stop"
    assert (await again.event())["usage"]["completion_tokens"] == 11
    assert await again.frame() == "[DONE]"
    assert b'poise_reattachments_total{class="interactive"} 3.0' in (await ask(app, "GET", "/metrics")).body


async def test_the_header_is_newer_than_the_query() -> None:
    """A browser's EventSource repeats the address it was given, and adds the header."""
    app = make_app(FakeEngine(says("Hello")))
    reply = await ask(app, "POST", CHAT, chat_body())
    path = f"{REQUESTS}/{reply.headers['x-poise-response-id']}/stream?from=0"
    assert text_of((await ask(app, "GET", path)).chunks) == "Hello"
    assert text_of((await ask(app, "GET", path, headers={"last-event-id": "3"})).chunks) == "lo"
    assert (await ask(app, "GET", path, headers={"last-event-id": "5.1"})).events == ["[DONE]"]
    bad = await ask(app, "GET", path.replace("from=0", "from=9"))
    assert (bad.status, bad.error["param"]) == (400, "from")
    assert "5.1" in bad.error["message"]


async def test_only_the_last_reader_takes_a_request_along() -> None:
    """One that was not detached goes on while anybody reads it."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request, response_id = await begun(app, engine)
    again = exchange(app, "GET", f"{REQUESTS}/{response_id}/stream?from=5").open()
    await again.start()
    asked.disconnect()
    await asked.ended()
    assert not engine.aborted
    request.say("!")
    assert (await again.event())["choices"][0]["delta"]["content"] == "!"
    again.disconnect()
    await again.ended()
    assert engine.aborted == [1]
    told = await report(app, response_id)
    assert (told["outcome"], told["choices"][0]["text"]) == ("cancelled", "Hello!")


async def test_a_failed_stream_is_told_again_with_its_error() -> None:
    """What came before stands, also for who comes later."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request, response_id = await begun(app, engine)
    request.finish("failed", "secret")
    await asked.ended()
    told = await report(app, response_id)
    assert (told["outcome"], told["error"]["code"]) == ("failed", "internal_error")
    reply = await ask(app, "GET", f"{REQUESTS}/{response_id}/stream")
    assert text_of(reply.chunks[:1]) == "Hello"
    assert reply.chunks[-1]["error"]["code"] == "internal_error"
    assert "[DONE]" not in reply.events
    assert b"secret" not in reply.body


async def test_erasing() -> None:
    """What has ended is gone for good; what runs must be cancelled first."""
    engine = FakeEngine()
    app = make_app(engine)
    asked, request, response_id = await begun(app, engine)
    path = f"{REQUESTS}/{response_id}"
    reply = await ask(app, "DELETE", path)
    assert (reply.status, reply.error["code"]) == (409, "not_possible")
    request.finish()
    await asked.ended()
    erased = msgspec.json.decode((await ask(app, "DELETE", path)).body, type=EraseResult)
    assert (erased.id, erased.tokens) == (response_id, 5)
    assert erased.bytes > 0
    for method, action in ACTIONS:
        assert (await ask(app, method, path + action)).status == 404
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_records{state="finished"} 0.0' in metrics
    assert "poise_record_bytes 0.0" in metrics


async def test_nothing_is_kept_where_nothing_may_be() -> None:
    """`retention_s` 0: the answer is the only one."""
    app = make_app(FakeEngine(says("x")), Settings.model_validate({"results": {"retention_s": 0}}))
    reply = await ask(app, "POST", CHAT, chat_body())
    assert (await ask(app, "GET", f"{REQUESTS}/{reply.headers['x-poise-response-id']}")).status == 404


async def test_a_summary_is_cancelled_with_its_request() -> None:
    """Before there is a prompt: the stream ends as cancelled, and nothing is asked after it."""
    engine = FakeEngine()
    settings = Settings.model_validate(
        {
            "classes": {
                "interactive": {"queue_max": 9, "itl_target_ms": 100, "slots_max": 1, "heavy_max": 1, "max_context_tokens": 400}
            }
        }
    )
    app = make_app(engine, settings)
    turns = [{"role": role, "content": "q" * 30} for _ in range(8) for role in ("user", "assistant")]
    body: dict[str, Any] = {"model": "toy", "messages": [*turns, {"role": "user", "content": "now"}]}
    body |= {"context_policy": "summarize", "max_tokens": 50, "stream": True}
    asked = exchange(app, "POST", CHAT, body, headers={"x-request-id": "mine"}).open()
    (await engine.submitted()).accept()
    told = await report(app, "mine")
    assert (told["state"], told["timeline"][-1]["what"]) == ("queued", "summarizing")
    await ask(app, "POST", f"{REQUESTS}/mine/cancel")
    reply = await asked.reply()
    assert reply.events[-1] == "[DONE]"
    assert reply.chunks[-1]["poise"] == {"outcome": "cancelled"}
    await asyncio.sleep(0)
    assert engine.aborted == [1]
    assert len(engine.submissions) == 1
