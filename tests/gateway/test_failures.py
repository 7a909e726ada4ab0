"""What goes wrong behind the gateway, told before and after the first byte."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from poise.config import Settings
from poise.gateway.http.connections.refusals import rendered
from poise.gateway.http.replies import error_reply
from poise.gateway.request.refusals import ApiError, retry_after
from poise.gateway.supervision.engine import ENGINE_LOST, QUARANTINED, SERVER_STOPPING, EnginePhase
from poise.gateway.tenancy.strangers import Strangers
from tests.gateway.fakes import FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body, says

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@STREAM
async def test_a_full_queue_is_429_with_the_numbers(stream: bool) -> None:
    """Also for a stream: nothing was sent yet. Seconds are rounded up."""
    engine = FakeEngine(lambda s: s.refuse("queue_full", 64, 64, 3_200_000))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(stream=stream))
    assert (reply.status, reply.error["code"], reply.error["type"]) == (429, "queue_full", "rate_limit_error")
    assert reply.headers["retry-after"] == "4"
    assert "64" in reply.error["message"]
    assert "interactive" in reply.error["message"]


async def test_a_refused_choice_takes_its_siblings_along() -> None:
    """Nothing goes on computing for a request that was answered with an error."""
    engine = FakeEngine(lambda s: s.accept() if s.handle.request_id == 1 else s.refuse("queue_full", 1, 1, 0))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(n=2))
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert engine.aborted == [1]


async def test_the_schedulers_too_long_is_the_callers_error() -> None:
    """It knows limits that the gateway does not, such as those of a class."""
    engine = FakeEngine(lambda s: s.refuse("too_long", 700, 600))
    reply = await ask(make_app(engine), "POST", COMPLETIONS, prompt_body())
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "prompt")
    assert "700" in reply.error["message"]
    assert "600" in reply.error["message"]


@pytest.mark.parametrize(
    ("phase", "code"),
    [
        (EnginePhase.LOADING, "engine_unavailable"),
        (EnginePhase.RESTARTING, "engine_unavailable"),
        (EnginePhase.STOPPED, "engine_unavailable"),
        (EnginePhase.FAILED, "engine_failed"),
    ],
)
async def test_without_an_engine_the_answer_is_503(phase: EnginePhase, code: str) -> None:
    """With the time to try again; a wrong request is still told what is wrong with it."""
    engine = FakeEngine()
    app = make_app(engine)
    engine.state.phase, engine.state.detail, engine.state.retry_after_s = phase, "bad file", 2.1
    reply = await ask(app, "POST", CHAT, chat_body(stream=True))
    assert (reply.status, reply.error["code"]) == (503, code)
    assert int(reply.headers["retry-after"]) >= 3
    assert (await ask(app, "POST", CHAT, {})).status == 400


async def test_without_a_vocabulary_the_answer_is_503() -> None:
    """The engine may be ready first."""
    reply = await ask(make_app(FakeEngine(), with_text=False), "POST", CHAT, chat_body())
    assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
    assert "vocabulary" in reply.error["message"]


async def test_an_engine_that_goes_between_two_choices() -> None:
    """The first one is taken back."""
    engine = FakeEngine(lambda s: s.accept())
    engine.unavailable_after = 1
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(n=2))
    assert (reply.status, reply.headers["retry-after"]) == (503, "3")
    assert engine.aborted == [1]


async def test_an_engine_lost_before_the_first_token_is_an_http_error() -> None:
    """Its first word on the request is its last."""
    engine = FakeEngine(lambda s: s.finish(ENGINE_LOST))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(stream=True))
    assert (reply.status, reply.error["code"]) == (503, "engine_lost")


def breaks(reason: str) -> Callable[[Submission], None]:
    def script(submission: Submission) -> None:
        submission.accept()
        submission.say("Hello")
        submission.finish(reason, "llama_decode at /secret/path")

    return script


@pytest.mark.parametrize(("reason", "status"), [(ENGINE_LOST, 503), ("failed", 500), ("aborted", 503)])
async def test_a_failure_half_way_is_an_error_of_the_whole_answer(
    reason: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine's own words go to the log, under the id that the client is told."""
    reply = await ask(make_app(FakeEngine(breaks(reason))), "POST", CHAT, chat_body())
    assert reply.status == status
    assert "secret" not in reply.error["message"]
    if reason == "failed":
        error_id = reply.error["message"].split()[2].rstrip(":")
        assert any(error_id in record.getMessage() and "secret" in record.getMessage() for record in caplog.records)
    else:
        assert "retry-after" in reply.headers


@pytest.mark.parametrize(("reason", "code"), [(ENGINE_LOST, "engine_lost"), ("failed", "internal_error")])
async def test_a_failure_half_way_ends_a_stream_with_an_error_event(reason: str, code: str) -> None:
    """What came before stands; no [DONE], which would say that all is well. The other choices end too."""
    engine = FakeEngine(lambda s: breaks(reason)(s) if s.handle.request_id == 1 else s.accept())
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(stream=True, n=2))
    assert reply.status == 200
    assert reply.chunks[0]["choices"][0]["delta"]["content"] == "Hello"
    assert reply.chunks[-1]["error"]["code"] == code
    assert "[DONE]" not in reply.events
    assert engine.aborted == [2]


def cut(text: str) -> Callable[[Submission], None]:
    def script(submission: Submission) -> None:
        submission.accept()
        submission.say(text)
        submission.finish(SERVER_STOPPING)

    return script


async def test_an_answer_that_is_cut_tells_what_there_was() -> None:
    """The server had to stop: not an error, as there is something to show."""
    reply = await ask(make_app(FakeEngine(cut("Hel"))), "POST", CHAT, chat_body(stop=["Help"]))
    answer, choice = reply.json(), reply.json()["choices"][0]
    assert (reply.status, choice["finish_reason"], choice["message"]["content"]) == (200, "length", "Hel")
    assert answer["poise"] == {"outcome": "server_stopping"}


async def test_a_stream_that_is_cut_ends_in_order() -> None:
    """With the text that was held back, the reason and [DONE]; the books call it what it was."""
    app = make_app(FakeEngine(cut("Hel")))
    reply = await ask(app, "POST", CHAT, chat_body(stream=True, stop=["Help"]))
    assert reply.text == "Hel"
    assert reply.chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert reply.chunks[-1]["poise"] == {"outcome": "server_stopping"}
    assert "[DONE]" in reply.events
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_requests_total{class="interactive",outcome="server_stopping"} 1.0' in metrics
    assert 'poise_client_disconnects_total{class="interactive"} 0.0' in metrics


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("reason", "code", "status"), [(SERVER_STOPPING, "server_stopping", 503), (QUARANTINED, "request_quarantined", 500)]
)
async def test_a_bad_end_before_the_first_token_has_its_own_error(reason: str, code: str, status: int, stream: bool) -> None:
    """As an ordinary HTTP error where it is the first word, else as the stream's last event."""
    app = make_app(FakeEngine(lambda s: s.finish(reason)))
    reply = await ask(app, "POST", CHAT, chat_body(stream=stream))
    assert (reply.status, reply.error["code"]) == (status, code)

    def later(submission: Submission) -> None:
        submission.accept()
        submission.finish(reason)

    app = make_app(FakeEngine(later))
    reply = await ask(app, "POST", CHAT, chat_body(stream=stream))
    assert (reply.chunks[-1]["error"] if stream else reply.error)["code"] == code


async def test_a_quarantined_request_keeps_what_was_sent() -> None:
    """And its stream ends with the error, without [DONE]."""
    reply = await ask(make_app(FakeEngine(breaks(QUARANTINED))), "POST", CHAT, chat_body(stream=True))
    assert reply.chunks[0]["choices"][0]["delta"]["content"] == "Hello"
    assert reply.chunks[-1]["error"]["code"] == "request_quarantined"
    assert "[DONE]" not in reply.events


async def test_an_unforeseen_error_shows_nothing_of_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    """An id for the log, before and within a stream."""
    engine = FakeEngine(lambda s: s.say([1 // 0]))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body())
    assert (reply.status, reply.error["code"]) == (500, "internal_error")
    assert "division" not in reply.error["message"]
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
    engine = FakeEngine(says([12345]))  # no such token
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(stream=True))
    assert reply.chunks[-1]["error"]["code"] == "internal_error"
    assert "IndexError" in caplog.text


async def test_more_open_requests_than_allowed_are_503() -> None:
    """Those beyond the bound are told at once; whoever looks after the server can still look at it."""
    engine = FakeEngine()
    app = make_app(engine, Settings.model_validate({"server": {"max_connections": 1}}))
    open_stream = exchange(app, "POST", CHAT, chat_body(stream=True)).open()
    request = await engine.submitted()
    request.accept()
    await open_stream.start()
    reply = await ask(app, "GET", "/v1/models")
    assert (reply.status, reply.error["code"]) == (503, "too_many_open_requests")
    assert "retry-after" in reply.headers
    for path in ("/health", "/health/live", "/status", "/metrics"):
        assert (await ask(app, "GET", path)).status == 200
    request.finish()
    await open_stream.ended()
    assert (await ask(app, "GET", "/v1/models")).status == 200


async def test_unknown_models_paths_and_methods() -> None:
    """The router's errors look like all others."""
    app = make_app(FakeEngine())
    reply = await ask(app, "POST", CHAT, chat_body(model="gpt-4o"))
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")
    assert "'toy'" in reply.error["message"]
    for path in ("/v1/nothing", "/v1/chat/none", "/docs", "/redoc", "/page/none.js"):
        reply = await ask(app, "GET", path)
        assert reply.status == 404, path
        assert reply.error
    reply = await ask(app, "GET", CHAT)
    assert (reply.status, reply.error["code"], reply.headers["allow"]) == (405, "method_not_allowed", "POST")
    reply = await ask(app, "DELETE", "/health")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/gpt-4/chat/completions", "/v1/chat/completions"),
        ("/v1/request", "/v1/requests"),
        ("/status/histroy", "/status/history"),
        ("/v1", "/v1/chat/completions"),
        ("/x" * 4000, "/v1/chat/completions"),
    ],
)
async def test_a_wrong_path_is_told_the_right_one(path: str, meant: str) -> None:
    """The nearest one, or else where chats are."""
    reply = await ask(make_app(FakeEngine()), "POST", path, {})
    assert (reply.status, reply.error["code"]) == (404, "not_found")
    assert f"'{meant}'" in reply.error["message"]


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ApiError(503, "engine_unavailable", "", headers=retry_after(2)), "true"),
        (ApiError(429, "queue_full", "", headers=retry_after(60)), "true"),
        (ApiError(429, "rate_limit_exceeded", "", headers=retry_after(61)), "false"),
        (ApiError(408, "request_timeout", ""), "true"),
        (ApiError(409, "not_possible", ""), "false"),
        (ApiError(500, "request_quarantined", ""), "false"),
        (ApiError(503, "engine_failed", ""), "false"),
        (Strangers(lambda *_, **__: None, lambda: 0.0).refused("a", ApiError(401, "x", "")), "false"),
    ],
)
async def test_sdks_repeat_what_helps(error: ApiError, again: str) -> None:
    """Official ones go by this header, before they look at the status."""
    assert error_reply(error).headers["x-should-retry"] == again
    assert f"x-should-retry: {again}\r\n".encode() in rendered(error)


async def test_a_key_that_stays_unknown_is_not_tried_again() -> None:
    """Although it is told to come back later."""
    strangers = Strangers(lambda *_, **__: None, lambda: 0.0)
    errors = [strangers.refused("a", ApiError(401, "invalid_api_key", "")) for _ in range(30)]
    assert (errors[-1].status, errors[-1].answer_headers["x-should-retry"]) == (429, "false")


async def test_request_ids() -> None:
    """The client's own if it is harmless, on every answer."""
    app = make_app(FakeEngine())
    reply = await ask(app, "GET", "/nope", headers={"x-request-id": "my-id.7"})
    assert reply.headers["x-request-id"] == "my-id.7"
    reply = await ask(app, "GET", "/nope", headers={"x-request-id": "my id\n"})
    assert reply.headers["x-request-id"].startswith("req-")


async def test_the_log_has_no_prompts_and_no_keys(caplog: pytest.LogCaptureFixture) -> None:
    """Not when all goes well, and not when it does not."""
    caplog.set_level(logging.DEBUG)
    for engine in (FakeEngine(says("answer-text")), FakeEngine(breaks("failed"))):
        headers = {"authorization": "Bearer key-text"}
        for extra in ({}, {"temperature": 9}, {"stream": True}):
            await ask(make_app(engine), "POST", CHAT, chat_body("prompt-text", **extra), headers=headers)
    assert "key-" in caplog.text, "the tenant is logged"
    for secret in ("prompt-text", "answer-text", "key-text", "Hello"):
        assert secret not in caplog.text
