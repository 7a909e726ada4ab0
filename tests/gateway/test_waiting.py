"""A request that has to wait is told so: its place, its estimate, and when it has waited long enough."""

from __future__ import annotations

import re

import pytest

from poise.config import Settings
from tests.gateway.fakes import Exchange, FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body, says, status

CHAT = "/v1/chat/completions"
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


async def open_stream(engine: FakeEngine, n: int = 1) -> tuple[Exchange, list[Submission]]:
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, n=n)).open()
    await engine.submitted(n)
    return asked, engine.submissions


async def test_a_waiting_stream_is_told_its_place_until_it_starts() -> None:
    """At first, and again at a new place or an estimate that moved by more than a fifth; never after its start."""
    asked, (request,) = await open_stream(FakeEngine())
    request.accept(position=3, eta_us=1_200_000)
    await asked.start()
    assert await asked.frame() == ": queued position=3 eta_ms=1200"
    request.wait(3, 1_100_000)
    request.wait(2, 1_100_000)
    assert await asked.frame() == ": queued position=2 eta_ms=1100"
    request.wait(2, 881_000)
    request.wait(2, 870_000)
    assert await asked.frame() == ": queued position=2 eta_ms=870"
    request.wait(2, 1_100_000)
    assert await asked.frame() == ": queued position=2 eta_ms=1100"
    request.start()
    request.wait(1, 1)
    request.say("x")
    assert (await asked.event())["choices"][0]["delta"]["content"] == "x"
    request.finish()
    await asked.ended()


async def test_a_stream_that_waits_longer_than_it_was_told() -> None:
    """It was to begin at once, so nothing was said; now it is."""
    asked, (request,) = await open_stream(FakeEngine())
    request.accept()
    assert "x-poise-queue-position" not in {name.decode() for name, _ in (await asked.message())["headers"]}
    request.wait(1, 100_000)
    assert await asked.frame() == ": queued position=1 eta_ms=100"
    request.finish()
    await asked.ended()


async def test_a_long_prompt_tells_how_far_it_is() -> None:
    """What was found counts as done. Said at most once a second, and not where the rest takes less than half of one."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", "/v1/completions", prompt_body([5] * 590, stream=True)).open()
    await engine.submitted(1)
    (request,) = engine.submissions
    request.accept()
    await asked.start()
    request.start(n_cached=100)
    request.prefill(200, pass_us=1_000_000)
    shown = re.fullmatch(r": prefill 300 of 590 eta_ms=(\d+)", await asked.frame())
    assert shown is not None
    assert int(shown[1]) >= 1_000 * 290 // 200
    for n_tokens in (200, 89, 1):
        request.prefill(n_tokens, pass_us=1)
    request.say("x")
    assert (await asked.event())["choices"][0]["text"] == "x"
    request.finish()
    await asked.ended()


async def test_a_prompt_that_is_soon_done_is_not_talked_about() -> None:
    asked, (request,) = await open_stream(FakeEngine())
    request.accept()
    await asked.start()
    request.start()
    request.prefill(len(request.prompt) - 1, pass_us=200_000)
    request.say("x")
    assert (await asked.event())["choices"][0]["delta"]["content"] == "x"
    request.finish()
    await asked.ended()


async def test_of_several_choices_the_first_in_the_queue_counts() -> None:
    """And when one of them has started, the answer has begun to come."""
    asked, (one, other) = await open_stream(FakeEngine(), n=2)
    one.accept(position=4, eta_us=2_000_000)
    other.accept(position=5, eta_us=3_000_000)
    message = await asked.message()
    assert (b"x-poise-queue-position", b"4") in message["headers"]
    assert await asked.frame() == ": queued position=4 eta_ms=2000"
    one.wait(1, 500_000)
    other.wait(2, 900_000)
    assert await asked.frame() == ": queued position=1 eta_ms=500"
    one.start()
    other.wait(1, 100_000)
    other.start()
    one.say("x")
    assert (await asked.event())["choices"][0]["index"] == 0
    asked.disconnect()
    await asked.ended()


@STREAM
async def test_headers_tell_what_the_engine_said_on_arrival(stream: bool) -> None:
    """Of requests that had to wait, streaming or not."""

    def script(request: Submission) -> None:
        request.accept(position=7, eta_us=2_345_678)
        request.start()
        request.finish()

    reply = await ask(make_app(FakeEngine(script)), "POST", CHAT, chat_body(stream=stream))
    assert (reply.headers["x-poise-queue-position"], reply.headers["x-poise-queue-eta-ms"]) == ("7", "2345")
    reply = await ask(make_app(FakeEngine(says("x"))), "POST", CHAT, chat_body(stream=stream))
    assert "x-poise-queue-position" not in reply.headers


@pytest.mark.parametrize(
    ("body", "configured_s", "expected_ms"),
    [
        ({}, 0.0, 0),
        ({}, 2.5, 2500),
        ({"queue_timeout": 1}, 2.5, 1000),
        ({"queue_timeout": 0.0001}, 0.0, 1),
        ({"queue_timeout": None}, 2.5, 2500),
    ],
)
async def test_the_queue_timeout_reaches_the_engine(body: object, configured_s: float, expected_ms: int) -> None:
    """The request's own, else its class's; a tiny one is not taken for none."""
    assert isinstance(body, dict)
    settings = Settings.model_validate({"classes": {"interactive": interactive() | {"queue_timeout_s": configured_s}}})
    engine = FakeEngine(says("x"))
    await ask(make_app(engine, settings), "POST", CHAT, chat_body(**body))
    assert engine.submissions[0].queue_timeout_ms == expected_ms


def interactive() -> dict[str, object]:
    return {"queue_max": 64, "itl_target_ms": 100, "slots_max": 12, "heavy_max": 2}


@pytest.mark.parametrize("value", [0, -1, 86_401, "5", True])
async def test_a_queue_timeout_is_a_positive_number(value: object) -> None:
    """Of at most a day."""
    reply = await ask(make_app(FakeEngine()), "POST", "/v1/completions", prompt_body(queue_timeout=value))
    assert (reply.status, reply.error["param"]) == (400, "queue_timeout")


def expires(request: Submission) -> None:
    request.accept(position=2, eta_us=900_000)
    request.finish("expired")


async def test_a_request_that_waited_too_long_is_503() -> None:
    """With the time to try again from the class's estimate; it is no client's disconnect."""
    engine = FakeEngine(expires)
    engine.state.status = status()
    app = make_app(engine)
    reply = await ask(app, "POST", CHAT, chat_body(queue_timeout=1.5))
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "queue_timeout", "1")
    assert "1.5 s" in reply.error["message"]
    engine.state.status = None
    assert (await ask(app, "POST", CHAT, chat_body(queue_timeout=1.5))).headers["retry-after"] == "1"
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_requests_total{class="interactive",outcome="expired"} 2.0' in metrics
    assert 'poise_client_disconnects_total{class="interactive"} 0.0' in metrics


async def test_a_stream_that_waited_too_long_ends_with_an_error_event() -> None:
    """Its other choices are taken back."""
    engine = FakeEngine(lambda s: expires(s) if s.handle.request_id == 1 else s.accept())
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(stream=True, n=2, queue_timeout=1))
    assert reply.status == 200
    assert reply.chunks[-1]["error"]["code"] == "queue_timeout"
    assert "[DONE]" not in reply.events
    assert engine.aborted == [2]


@STREAM
@pytest.mark.parametrize(
    ("reason", "code", "word"),
    [("tenant_queue_full", "tenant_queue_full", "waiting"), ("tenant_rate", "rate_limit_exceeded", "tokens per minute")],
)
async def test_the_limits_of_a_tenant_are_429(reason: str, code: str, word: str, stream: bool) -> None:
    """With what was found, the limit, and the time after which there is room again."""
    engine = FakeEngine(lambda s: s.refuse(reason, 777, 666, 2_100_000))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(stream=stream))
    assert (reply.status, reply.error["code"], reply.error["type"]) == (429, code, "rate_limit_error")
    assert reply.headers["retry-after"] == "3"
    for told in ("777", "666", word, "3 s"):
        assert told in reply.error["message"]
