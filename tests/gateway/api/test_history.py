"""The samples of the last ten minutes: which are kept, which are told, and that they tell what happened."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import msgspec
import pytest
from starlette.types import Message

from poise.gateway.api.native.status import HistoryBody
from poise.gateway.app import Gateway
from poise.gateway.condition.history import SAMPLES_MAX, History
from poise.gateway.supervision.engine import EnginePhase
from tests.gateway.fakes import WAIT_S, FakeEngine, ask, chat_body, exchange, make_app, says, status


def history_of(app: Gateway) -> History:
    history: History = app.history
    return history


async def told(app: Gateway, query: str = "", **arguments: Any) -> HistoryBody:
    reply = await ask(app, "GET", f"/status/history{query}", **arguments)
    assert (reply.status, reply.headers["cache-control"]) == (200, "no-store")
    return msgspec.json.decode(reply.body, type=HistoryBody)


async def test_a_sample_tells_what_happened_in_its_second() -> None:
    """Tokens, ends and refusals of requests, and how the engine stands."""
    engine = FakeEngine(says("four"))
    app = make_app(engine)
    await ask(app, "POST", "/v1/chat/completions", chat_body(n=2))
    await ask(app, "POST", "/v1/chat/completions", chat_body(temperature=9))
    engine.script = lambda submission: submission.refuse("queue_full", 1, 1)
    await ask(app, "POST", "/v1/chat/completions", chat_body(service_tier="flex"))
    history_of(app).sample()
    history_of(app).sample()
    body = await told(app)
    assert (body.period_s, body.next, [sample.seq for sample in body.samples]) == (1.0, 2, [0, 1])
    first, second = body.samples
    interactive = first.classes["interactive"]
    assert interactive.ttft_ms is not None
    assert interactive.itl_ms is not None
    assert (interactive.ttft_ms.count, interactive.itl_ms.count, interactive.finished) == (2, 6, {"stop": 2})
    assert first.classes["background"].refused == {"queue_full": 1}
    assert first.refused == {"invalid_value": 1, "queue_full": 1}
    assert (first.phase, first.level, first.limit) == ("ready", "normal", "compute")
    assert first.memory.gateway_rss_bytes > 0
    assert (second.classes["interactive"].ttft_ms, second.refused) == (None, {})


async def test_only_what_is_new_is_told() -> None:
    """`since` is the number of the first sample that is wanted. One of an earlier server gets everything."""
    app = make_app(FakeEngine())
    assert (await told(app, "?since=0")).samples == []
    for _ in range(3):
        history_of(app).sample()
    for since, wanted in ((0, [0, 1, 2]), (2, [2]), (3, []), (4, [0, 1, 2])):
        body = await told(app, f"?since={since}")
        assert ([sample.seq for sample in body.samples], body.next) == (wanted, 3)


async def test_the_oldest_samples_go() -> None:
    """Ten minutes are kept; who was away for longer gets the oldest there is."""
    app = make_app(FakeEngine())
    for _ in range(SAMPLES_MAX + 5):
        history_of(app).sample()
    body = await told(app, "?since=2")
    assert (len(body.samples), body.samples[0].seq, body.next) == (SAMPLES_MAX, 5, SAMPLES_MAX + 5)


async def test_a_client_that_does_not_read_holds_no_copy_of_the_samples() -> None:
    """Whoever asks for all of them and takes nothing has a piece of the answer here; the rest is not made."""
    app, n_clients = make_app(FakeEngine()), 10
    for _ in range(SAMPLES_MAX):
        history_of(app).sample()
    whole = len((await ask(app, "GET", "/status/history")).body)
    reached = asyncio.Semaphore(0)

    async def never_taken(message: Message) -> None:
        if message["type"] == "http.response.body":
            reached.release()
            await asyncio.Event().wait()

    tracemalloc.start()
    try:
        asked = [exchange(app, "GET", "/status/history") for _ in range(n_clients)]
        clients = [asyncio.create_task(app(one.scope, one._receive, never_taken)) for one in asked]
        for _ in clients:
            await asyncio.wait_for(reached.acquire(), WAIT_S)
        held = tracemalloc.get_traced_memory()[0] / n_clients
    finally:
        tracemalloc.stop()
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    assert held < whole / 8, f"{held:.0f} bytes for each client, of an answer of {whole}"


@pytest.mark.parametrize("since", ["-1", "1.5", "x", "", "9" * 16, "%D9%A3"])
async def test_a_bad_place_is_refused(since: str) -> None:
    """In the API's own format."""
    reply = await ask(make_app(FakeEngine()), "GET", f"/status/history?since={since}")
    assert reply.status == 400
    assert (reply.error["code"], reply.error["param"]) == ("invalid_value", "since")


async def test_before_and_without_an_engine_there_are_samples_too() -> None:
    """And everybody may see them: no tenant is in any."""
    engine = FakeEngine()
    app = make_app(engine)
    history_of(app).sample()
    engine.state.phase, engine.state.ready, engine.state.status = EnginePhase.RESTARTING, None, None
    engine.state.restarts = 1
    history_of(app).sample()
    reply = await ask(app, "GET", "/status/history", client="192.0.2.1")
    ready, gone = msgspec.json.decode(reply.body, type=HistoryBody).samples
    assert (ready.pools[0].cells_used, gone.pools, gone.limit, gone.restarts) == (210, [], None, 1)
    assert b"local" not in reply.body


async def test_rates_are_of_the_time_that_really_passed() -> None:
    """A sample that was taken late counts a longer time."""
    engine = FakeEngine()
    app = make_app(engine)
    now_ns = 0
    history = History(
        engine, app.metrics, app.degradation, clock_ns=lambda: now_ns, wall_clock=lambda: 1_700_000_000.5, rss_bytes=lambda: 42
    )
    now_ns = 1_000_000_000
    history.sample()
    engine.state.status = msgspec.structs.replace(status(prompt_tokens=500), step=8)
    now_ns = 5_000_000_000
    history.sample()
    kept = [msgspec.json.decode(raw) for raw in history._samples]
    assert [sample["prompt_tokens_per_s"] for sample in kept] == [100.0, 100.0]
    assert (kept[1]["at"], kept[1]["memory"]["gateway_rss_bytes"]) == (1_700_000_000.5, 42)
