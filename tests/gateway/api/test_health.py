"""What operators see, from the engine's state and from what the gateway counted."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from poise.gateway.api.native.status import HealthBody, StatusBody
from poise.gateway.supervision.engine import EnginePhase
from poise.metrics.lately import RecentTtft
from poise.scheduler.request import PreemptionKind
from tests.gateway.fakes import MODEL, OPERATOR, FakeEngine, ask, chat_body, make_app, says, status, text_model


@pytest.mark.parametrize(
    ("phase", "shown"),
    [
        (EnginePhase.READY, "ok"),
        (EnginePhase.LOADING, "loading"),
        (EnginePhase.RESTARTING, "restarting"),
        (EnginePhase.FAILED, "failed"),
        (EnginePhase.STOPPED, "stopped"),
    ],
)
async def test_health_follows_the_engine(phase: EnginePhase, shown: str) -> None:
    """200 only when requests are taken; the gateway itself is alive all along."""
    engine = FakeEngine()
    engine.state.phase, engine.state.stage, engine.state.progress, engine.state.restarts = phase, "weights", 0.5, 2
    app = make_app(engine)
    reply = await ask(app, "GET", "/health")
    body = msgspec.json.decode(reply.body, type=HealthBody)
    assert (reply.status, body.ready) == ((200, True) if shown == "ok" else (503, False))
    assert ("retry-after" in reply.headers) == (shown != "ok")
    assert (body.status, body.live, body.model) == (shown, True, MODEL)
    assert (body.stage, body.progress, body.restarts) == ("weights", 0.5, 2)
    assert (await ask(app, "GET", "/health/live")).status == 200


async def test_health_waits_for_the_vocabulary() -> None:
    """Without it no request can be answered, whatever the engine says."""
    app = make_app(FakeEngine(), with_text=False)
    assert (await ask(app, "GET", "/health")).json()["status"] == "loading"
    await app.set_text(text_model())
    assert (await ask(app, "GET", "/health")).json()["status"] == "ok"


async def test_status_is_complete() -> None:
    """Classes, pools and recent times to the first token."""
    app = make_app(FakeEngine(says("x")))
    await ask(app, "POST", "/v1/chat/completions", chat_body(n=2))
    reply = await ask(app, "GET", "/status", headers=OPERATOR)
    body = msgspec.json.decode(reply.body, type=StatusBody)
    interactive = body.classes["interactive"]
    assert (interactive.queued, interactive.running, interactive.wait_estimate_ms) == (2, 3, 250)
    assert interactive.ttft_ms.count == 2
    assert interactive.ttft_ms.p50 is not None
    assert body.classes["background"].ttft_ms == RecentTtft(None, None, 0)
    short = body.pools[0]
    assert (short.name, short.slots, short.slots_held, short.cells, short.cells_used) == ("short", 4, 3, 1200, 210)
    assert (short.slots_warm, short.cells_warm, short.slots_peak, short.cells_peak) == (1, 40, 4, 900)
    assert [(slot.slot, slot.state, slot.class_, slot.cells) for slot in short.occupied] == [
        (0, "running", "interactive", 200),
        (3, "warm", None, 40),
    ]
    assert short.holes == 1
    assert (short.cells_by_class, short.cells_by_tenant) == ({"interactive": 200, "background": 10}, {"local": 190, "": 20})
    assert (interactive.paused, body.classes["background"].swapped, interactive.wait_error) == (1, 4, 0.25)
    assert body.store is not None
    assert body.store.bytes_by_purpose == {"swap": 500, "prefix": 70, "template": 0}
    assert body.totals is not None
    assert (body.totals.preemptions[PreemptionKind.SWAP], body.totals.prefix_hits, body.totals.loaded_bytes) == (4, 11, 4000)
    assert (body.engine_rss_bytes, body.engine_unaccounted_bytes, body.bottleneck) == (123_456, 23_456, "compute")
    assert body.phase == "ready"


async def test_status_names_tenants_to_operators_only() -> None:
    """Everybody may look at the figures; who else is here is nobody's business."""
    reply = await ask(make_app(FakeEngine()), "GET", "/status", client="192.0.2.1")
    assert [pool.cells_by_tenant for pool in msgspec.json.decode(reply.body, type=StatusBody).pools] == [None, None]


async def test_status_before_the_engine_has_told_anything() -> None:
    """Every field is there all the same."""
    engine = FakeEngine()
    engine.state.phase, engine.state.ready, engine.state.status = EnginePhase.LOADING, None, None
    body = msgspec.json.decode((await ask(make_app(engine), "GET", "/status")).body, type=StatusBody)
    assert (body.phase, body.pools, body.classes["interactive"].queued) == ("loading", [], 0)
    assert (body.store, body.totals, body.engine_unaccounted_bytes) == (None, None, None)


async def test_metrics_count_what_happened() -> None:
    """A scrape that Prometheus can read, with the sums of a few requests."""
    engine = FakeEngine(says("four"))
    app = make_app(engine)
    await ask(app, "POST", "/v1/chat/completions", chat_body(n=2))
    await ask(app, "POST", "/v1/chat/completions", chat_body(temperature=9))
    engine.script = lambda submission: submission.refuse("queue_full", 1, 1)
    await ask(app, "POST", "/v1/chat/completions", chat_body(service_tier="flex"))
    reply = await ask(app, "GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }
    assert samples["poise_requests_total", "interactive", "stop"] == 2
    assert samples["poise_prompt_tokens_total", "interactive"] == 21
    assert samples["poise_output_tokens_total", "interactive"] == 8
    assert samples["gen_ai_server_time_to_first_token_seconds_count", "interactive"] == 2
    assert samples["poise_queue_wait_seconds_sum", "interactive"] == pytest.approx(0.002)
    assert samples["gen_ai_server_request_duration_seconds_count", "interactive"] == 2
    assert samples["poise_rejected_total", "invalid_value", "none"] == 1
    assert samples["poise_rejected_total", "background", "queue_full"] == 1
    assert samples["poise_engine_up",] == 1
    assert samples["poise_queued_requests", "interactive"] == 2
    assert samples["poise_pool_cells_used", "short"] == 210
    assert samples["poise_engine_step_part_seconds_total", "forward"] == 5
    assert samples["poise_engine_step_seconds_bucket", "2.0"] == 4
    assert samples["poise_engine_step_seconds_sum",] == 7
    assert samples["poise_bottleneck_seconds_total", "compute"] == 3
    assert (samples["poise_bottleneck", "compute"], samples["poise_bottleneck", "idle"]) == (1, 0)
    assert samples["poise_fairness_gap_seconds", "interactive"] == 0.25
    assert samples["poise_complete_answer_seconds_count", "interactive"] == 2
    assert samples["poise_pool_class_cells", "interactive", "short"] == 200
    assert samples["poise_store_bytes", "swap"] == 500
    assert samples["poise_engine_preemptions_total", "drop"] == 1
    assert samples["poise_engine_evicted_entries_total",] == 8
    engine.state.phase, engine.state.status = EnginePhase.RESTARTING, None
    text = (await ask(app, "GET", "/metrics")).body.decode()
    assert "poise_engine_up 0.0" in text
    assert "poise_pool_cells" not in text


async def test_two_gateways_in_one_process_count_apart() -> None:
    """No registry is shared."""
    one, other = make_app(FakeEngine(says("x"))), make_app(FakeEngine(says("x")))
    await ask(one, "POST", "/v1/chat/completions", chat_body())
    assert 'poise_output_tokens_total{class="interactive"} 0.0' in (await ask(other, "GET", "/metrics")).body.decode()


async def test_the_lifespan_runs_the_callers() -> None:
    """What the caller starts is stopped after the gateway's own."""
    seen: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(_: object):  # type: ignore[no-untyped-def]
        seen.append("in")
        yield
        seen.append("out")

    engine = FakeEngine()
    engine.state.status = status(1000, 500)
    app = make_app(engine, lifespan=lifespan)
    async with app.running():
        assert seen == ["in"]
        await asyncio.sleep(0)
    assert seen == ["in", "out"]
