"""The journal on its way to an operator: in pages, one reader at a time, and none that keeps others away."""

from __future__ import annotations

import asyncio

from poise.gateway.api.native.journal import JournalRoom
from poise.gateway.app import Gateway
from poise.gateway.supervision.engine import EnginePhase
from tests.gateway.fakes import OPERATOR, Exchange, FakeEngine, ask, exchange, make_app

JOURNAL = "/admin/journal"


def reading(app: Gateway) -> Exchange:
    return exchange(app, "GET", JOURNAL, headers=OPERATOR).open()


def paged() -> FakeEngine:
    """An engine whose second page waits for the test."""
    engine = FakeEngine()
    engine.journal_pages = [[f'{{"page":{i}}}'] for i in range(3)]
    engine.next_page = asyncio.Semaphore(0)
    return engine


async def test_one_reader_at_a_time() -> None:
    """Another one is told when to come back; it is let in when the first one has it all."""
    engine = paged()
    app = make_app(engine)
    first = reading(app)
    assert await first.start() == 200
    assert (await first.message())["body"] == b'{"page":0}\n'
    for _ in range(20):
        reply = await ask(app, "GET", JOURNAL, headers=OPERATOR)
        assert (reply.status, reply.error["code"]) == (429, "journal_is_read")
        assert int(reply.headers["retry-after"]) >= 1
    assert engine.readers == 1
    for _ in range(3):
        engine.next_page.release()
    await first.ended()
    assert [(await first.message())["body"] for _ in range(3)] == [b'{"page":1}\n', b'{"page":2}\n', b""]
    engine.next_page = asyncio.Semaphore(3)
    assert (await ask(app, "GET", JOURNAL, headers=OPERATOR)).body.count(b"\n") == 3
    assert engine.readers == 0


async def test_a_reader_that_leaves_makes_room() -> None:
    """At once, and the engine is told."""
    engine = paged()
    app = make_app(engine)
    first = reading(app)
    assert await first.start() == 200
    first.disconnect()
    await first.ended()
    assert engine.readers == 0
    engine.next_page = asyncio.Semaphore(3)
    assert (await ask(app, "GET", JOURNAL, headers=OPERATOR)).status == 200


async def test_a_reader_that_does_not_read_makes_room_in_time() -> None:
    """What it gets says that it is not all."""
    engine = paged()
    answer = await JournalRoom(engine, read_s_max=0.01).open()
    sent = []

    async def send(message: object) -> None:
        sent.append(message)

    await answer({"type": "http"}, asyncio.Event().wait, send)  # type: ignore[arg-type]
    assert "broken_off" in str(sent[-2])
    assert "was not read within 0.01 s" in str(sent[-2])
    assert engine.readers == 0


async def test_without_an_engine_it_is_503_and_the_room_is_free() -> None:
    """Also when it comes back."""
    engine = FakeEngine()
    app = make_app(engine)
    engine.state.phase = EnginePhase.RESTARTING
    for _ in range(2):
        reply = await ask(app, "GET", JOURNAL, headers=OPERATOR)
        assert (reply.status, reply.error["code"]) == (503, "engine_unavailable")
    engine.state.phase = EnginePhase.READY
    assert (await ask(app, "GET", JOURNAL, headers=OPERATOR)).status == 200
