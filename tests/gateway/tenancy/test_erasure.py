"""Erasing a tenant reaches what is live of it: requests go on, and leave nothing and no name when they end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from poise.audit.log import AuditLog
from poise.config import Settings
from poise.gateway.supervision.blame import ERASED
from poise.gateway.supervision.engine import EnginePhase, EngineUnavailable
from poise.gateway.tenancy.auditing import Audit
from poise.wire import messages as wire
from poise.wire import to_engine
from tests.gateway.fakes import OPERATOR, FakeEngine, ask, chat_body, exchange, make_app, unpaced
from tests.gateway.handover_engine import HandoverEngine

CHAT, REQUESTS = "/v1/chat/completions", "/v1/requests"
DATA = "/admin/tenants/local/data"


async def test_what_is_live_is_not_kept() -> None:
    """Whoever reads it reads on to its end; then there is no result, and /metrics counts it among the others."""
    engine = HandoverEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True)).open()
    await engine.until_submitted()
    engine.start(1)
    engine.say(1, "One. ")
    assert (await ask(app, "DELETE", DATA, headers=OPERATOR)).json()["live_kept"] == 1
    engine.say(1, "Two.")
    engine.finish(1)
    assert (await asked.reply()).text == "One. Two."
    assert (await ask(app, "GET", REQUESTS)).json()["data"] == []
    told = (await ask(app, "GET", "/metrics", headers=OPERATOR)).body.decode()
    assert 'tenant="local"' not in told
    assert 'poise_tenant_requests_total{class="interactive",outcome="stop",tenant="other"} 1.0' in told
    again = exchange(app, "POST", CHAT, chat_body()).open()
    await engine.until_submitted(2)
    engine.start(2)
    engine.finish(2)
    await again.reply()
    assert len((await ask(app, "GET", REQUESTS)).json()["data"]) == 1, "what comes later is kept as ever"


async def test_a_refusal_of_what_was_live_names_nobody() -> None:
    """It is counted, and no tenant's name comes back into /metrics by it."""
    engine = HandoverEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body()).open()
    await engine.until_submitted()
    await ask(app, "DELETE", DATA, headers=OPERATOR)
    engine.refuse(1)
    assert (await asked.reply()).status == 429
    assert 'tenant="local"' not in (await ask(app, "GET", "/metrics", headers=OPERATOR)).body.decode()


async def test_what_was_on_its_way_is_live_too() -> None:
    """Its body was not complete when its tenant was erased; the engine is told to keep nothing of it."""
    engine = FakeEngine(lambda s: s.accept())
    app = make_app(engine)
    body = json.dumps(chat_body(stream=True)).encode()
    begun, gate = asyncio.Event(), asyncio.Event()
    asked = exchange(app, "POST", CHAT, [body[:10], body[10:]])
    arrives = asked._receive

    async def slowly() -> object:
        if len(asked.parts) == 1:
            begun.set()
            await gate.wait()
        return await arrives()

    asked._receive = slowly  # type: ignore[method-assign, assignment]
    asked.open()
    await begun.wait()
    await ask(app, "DELETE", DATA, headers=OPERATOR)
    gate.set()
    request = await engine.submitted()
    assert request.erased
    asked.disconnect()
    await asked.ended()
    assert (await ask(app, "GET", REQUESTS)).json()["data"] == []


async def test_another_engine_is_told() -> None:
    """What it takes over leaves nothing either, and is not named if engines die of it."""
    sent: list[to_engine.ToEngine] = []
    engine = HandoverEngine(recoveries_max=5)
    engine.handover._send = sent.append
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True)).open()
    await engine.until_submitted()
    engine.start(1)
    engine.state.phase = EnginePhase.RESTARTING
    assert (await ask(app, "DELETE", DATA, headers=OPERATOR)).status == 200, "no engine is needed for it"
    engine.state.phase = EnginePhase.READY
    engine.die(1)
    taken_over = [message for message in sent if isinstance(message, to_engine.Submit)][-1]
    assert (taken_over.readmitted, taken_over.erased) == (True, True)
    engine.accept(1)
    engine.die(1)
    await asked.reply()
    (report,) = engine.quarantined()
    assert report.tenant == ERASED


async def test_reports_of_what_engines_died_of_lose_the_name() -> None:
    """The answer says how many did; another tenant's stay as they are."""
    engine = HandoverEngine()
    app = make_app(engine)
    for key in ("a", "b"):
        asked = exchange(app, "POST", CHAT, chat_body(), {"x-api-key": key}).open()
        n = 1 if key == "a" else 2
        await engine.until_submitted(n)
        engine.start(n)
        engine.die(n)
        engine.accept(n)
        engine.die(n)
        await asked.reply()
    names = [report.tenant for report in engine.quarantined()]
    erased = (await ask(app, "DELETE", f"/admin/tenants/{names[0]}/data", headers=OPERATOR)).json()["erased"]
    assert erased["quarantine_reports"] == 1
    assert [report.tenant for report in engine.quarantined()] == [ERASED, names[1]]


def test_no_text_of_what_was_live_goes_into_the_audit_log(tmp_path: Path) -> None:
    """Its entry does, as the entries of others stay."""
    asyncio.run(_converse_and_erase(tmp_path))
    text = "".join(path.read_text() for path in tmp_path.glob("audit-*.jsonl"))
    assert text.count('"event":"request"') == 2
    assert text.count("xyzzy") == text.count("plugh") == 0, "neither of what was erased nor of what came to its end after it"


async def _converse_and_erase(folder: Path) -> None:
    settings = Settings.model_validate(unpaced().model_dump() | {"tenants": {"local": {"content_log": True}}})
    log = AuditLog(folder, b"k" * 32, rotate_bytes=1 << 20, keep_days=1)
    engine = HandoverEngine()
    app = make_app(engine, settings, audit=Audit(settings, log))
    for erase in (False, True):
        asked = exchange(app, "POST", CHAT, chat_body("xyzzy")).open()
        n = 1 + erase
        await engine.until_submitted(n)
        engine.start(n)
        engine.say(n, "plugh")
        if erase:
            await ask(app, "DELETE", DATA, headers=OPERATOR)
        engine.finish(n)
        await asked.reply()
    log.close()


async def test_a_summary_goes_on_for_who_was_erased() -> None:
    """Both of its engine requests leave nothing: the one that was computed, and the one that comes after."""
    engine = HandoverEngine(cells=4000)
    sent: list[to_engine.ToEngine] = []
    engine.handover._send = sent.append
    app = make_app(engine)
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "words " * 40} for i in range(23)]
    body = {"model": "toy", "messages": turns, "context_policy": "summarize", "max_tokens": 100}
    asked = exchange(app, "POST", CHAT, body).open()
    await engine.until_submitted()
    engine.start(1)
    await ask(app, "DELETE", DATA, headers=OPERATOR)
    n = 1
    while n in engine.background:
        engine.say(n, "They talked.")
        engine.finish(n)
        n += 1
        await engine.until_submitted(n)
        engine.start(n)
    engine.finish(n)
    await asked.reply()
    submits = [message for message in sent if isinstance(message, to_engine.Submit)]
    assert [submit.erased for submit in submits] == [False, *[True] * (n - 1)]
    assert (await ask(app, "GET", REQUESTS)).json()["data"] == []


async def test_an_engine_that_ends_over_an_erasure_holds_nothing() -> None:
    """As one that has no memory for it does. One that is there and does not answer is an error."""
    engine = FakeEngine()
    app = make_app(engine)

    async def dies(tenant: str) -> wire.Erased:
        engine.state.phase = EnginePhase.RESTARTING
        raise EngineUnavailable("the engine exited", 1.0)

    async def says_nothing(tenant: str) -> wire.Erased:
        raise EngineUnavailable("the engine did not answer in time", 1.0)

    engine.erase = says_nothing  # type: ignore[method-assign]
    assert (await ask(app, "DELETE", DATA, headers=OPERATOR)).status == 503
    engine.erase = dies  # type: ignore[method-assign]
    reply = await ask(app, "DELETE", DATA, headers=OPERATOR)
    assert (reply.status, reply.json()["erased"]["cells"]) == (200, 0)
