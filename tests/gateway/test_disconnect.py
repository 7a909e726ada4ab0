"""A client that leaves: its work ends at once, wherever it stands."""

from __future__ import annotations

import pytest

from tests.gateway.fakes import FakeEngine, ask, chat_body, exchange, make_app

CHAT = "/v1/chat/completions"
STREAM = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@STREAM
async def test_while_tokens_come(stream: bool) -> None:
    """All choices are aborted; no further token is needed to notice."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stream=stream, n=3)).open()
    for i in (1, 2, 3):
        (await engine.submitted(i)).accept()
    engine.submissions[0].say("x")
    if stream:
        await asked.start()
        await asked.event()
    asked.disconnect()
    assert sorted(await engine.aborts(3)) == [1, 2, 3]
    await asked.ended()


@STREAM
async def test_while_it_waits_in_the_queue(stream: bool) -> None:
    """Accepted, not started: its place becomes free."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stream=stream)).open()
    (await engine.submitted()).accept(position=9, eta_us=60_000_000)
    asked.disconnect()
    assert await engine.aborts(1) == [1]
    await asked.ended()


@STREAM
async def test_before_the_engine_has_answered(stream: bool) -> None:
    """Submitted, neither accepted nor refused."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stream=stream)).open()
    await engine.submitted()
    asked.disconnect()
    assert await engine.aborts(1) == [1]
    await asked.ended()
    assert asked.sent.empty()


async def test_in_the_middle_of_the_body() -> None:
    """Nothing is computed for half a request."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, [b'{"model":'], complete=False).open()
    asked.disconnect()
    await asked.ended()
    assert asked.sent.empty()
    assert not engine.submissions


async def test_a_finished_request_is_not_aborted() -> None:
    """The end of the connection after the end of the answer is no disconnect."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True)).open()
    request = await engine.submitted()
    request.accept()
    request.finish()
    await asked.ended()
    asked.disconnect()
    assert not engine.aborted
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_client_disconnects_total{class="interactive"} 0.0' in metrics


async def test_disconnects_are_counted() -> None:
    """As such, and as cancelled choices."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(service_tier="flex")).open()
    (await engine.submitted()).accept()
    asked.disconnect()
    await asked.ended()
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_client_disconnects_total{class="background"} 1.0' in metrics
    assert 'poise_requests_total{class="background",outcome="cancelled"} 1.0' in metrics
    assert "poise_open_requests 0.0" in metrics


async def test_a_cancelled_server_task_leaves_nothing_behind() -> None:
    """The server may be stopped while a request is open."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body()).open()
    (await engine.submitted()).accept()
    assert asked.task is not None
    asked.task.cancel()
    assert await engine.aborts(1) == [1]
