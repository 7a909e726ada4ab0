"""What a level does: who is refused, what the engine is told, what everybody can see."""

from __future__ import annotations

import logging
import signal
from typing import Any

import pytest

from poise.config import LevelsSettings, Settings, load
from poise.config.settings import EngineSettings
from poise.gateway.condition.degradation import Degradation, fallback
from poise.gateway.supervision.blame import Cause, Death
from poise.gateway.supervision.engine import EnginePhase
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.request import RequestClass
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, says

CRASH = Death(Cause.CRASH, -signal.SIGSEGV, "it died")
TERM = Death(Cause.CRASH, -signal.SIGTERM, "it was ended")
SETTINGS = Settings(levels=LevelsSettings(crashes_max=2, recover_s=100.0, memory_low_mb=64))
MANY = 1 << 40


class Server:
    """A degradation on a clock of its own."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.now_s = 0.0
        self.free = MANY
        self.engine = FakeEngine()
        self.metrics = RecoveryMetrics()
        self.it = Degradation(settings, self.engine, self.metrics, lambda: self.free, lambda: self.now_s)

    def look(self, now_s: float, background: int = 0) -> str:
        self.now_s = now_s
        self.engine.queued = {"background": background}
        self.it.look()
        return self.it.level.value

    def die(self, death: Death = CRASH) -> None:
        for listener in self.engine.listeners:
            listener(death)


def level_of(server: Server, level: str) -> float:
    return server.metrics.registry.get_sample_value("poise_level", {"level": level}) or 0.0


def test_constrained_lowers_queues_and_slots_and_gives_them_back() -> None:
    """Each once, not once a second."""
    server = Server()
    for second in range(5):
        assert server.look(second, 240) == "constrained"
    assert server.engine.adjusted == [(0.5, 0.5)]
    for second in range(5, 16):
        server.look(second)
    assert server.it.level.value == "normal"
    assert server.engine.adjusted == [(0.5, 0.5), (1.0, 1.0)]


def test_low_memory_constrains() -> None:
    """Of the host, as it is told."""
    server = Server()
    server.free = 10 << 20
    assert server.look(0) == "constrained"
    assert server.it.reasons == ["free memory in MB 10 (begins below 64, ends at 80)"]


def test_a_transition_is_one_line_and_one_count(caplog: pytest.LogCaptureFixture) -> None:
    """With the numbers; the gauge has one level at a time."""
    server = Server()
    with caplog.at_level(logging.WARNING):
        for second in range(4):
            server.look(second, 128)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "level busy, was normal: background queue 128 (begins at 124, ends below 62)"
    assert (level_of(server, "busy"), level_of(server, "normal")) == (1.0, 0.0)
    name = "poise_level_transitions_total"
    assert server.metrics.registry.get_sample_value(name, {"level": "busy"}) == 1.0


def test_repeated_crashes_bring_the_fallback_and_quiet_brings_the_normal_one_back() -> None:
    """The next engine is started in it at once; the way back waits for a moment without live requests."""
    server = Server()
    used = []
    for _ in range(2):
        server.die()
        used.append(server.engine.settings)
    assert used == [None, fallback(SETTINGS)]
    assert server.it.level.value == "degraded"
    assert server.look(99) == "degraded"
    assert not server.engine.replaced
    server.engine.state.phase = EnginePhase.RESTARTING
    assert server.look(200) == "degraded"
    server.engine.state.phase = EnginePhase.READY
    assert server.look(201) == "normal"
    assert server.engine.settings == SETTINGS
    assert server.engine.replaced == ["the normal configuration is tried again"]


def test_ends_on_purpose_do_not_degrade() -> None:
    """An operator may end engines as often as he likes."""
    server = Server()
    for _ in range(10):
        server.die(TERM)
    assert server.it.level.value == "normal"


def test_draining_counts_down_once() -> None:
    """A second call does not begin anew."""
    server = Server()
    assert server.it.drain() == 30.0
    server.now_s = 10.0
    assert server.it.drain() == 30.0


@pytest.mark.parametrize("profile", ["workstation", "team", "edge"])
def test_the_fallback_is_a_valid_configuration(profile: str) -> None:
    """Fewer slots, fewer threads, small batches, nothing fancy; limits of requests as before."""
    settings = load(None, {}, {"profile": profile}).settings
    lower = fallback(settings)
    assert Settings.model_validate(lower.model_dump()) == lower
    assert lower.pools.short.slots == max(1, settings.n_slots("short") // 2)
    assert lower.classes.interactive.slots_max <= lower.n_slots("short")
    assert lower.classes.background.heavy_max <= lower.n_slots("long")
    assert max(lower.n_slots("short"), lower.scheduler.quantum_tokens) <= lower.engine.batch_tokens <= 128
    assert (lower.engine.adapt_threads, lower.store.prefix_reuse) == (False, False)
    assert lower.pools.short.flash_attention == ("on" if settings.engine.kv_type == "q8_0" else "off")
    assert lower.pools.long.slot_tokens == settings.pools.long.slot_tokens
    assert lower.classes.interactive.queue_max == settings.classes.interactive.queue_max


def test_the_fallback_has_one_thread_fewer() -> None:
    """But one at least."""
    threads = [fallback(Settings(engine=EngineSettings(threads=n))).engine.threads for n in (1, 2, 8)]
    assert threads == [1, 1, 7]


def app_at(background: int, *, draining: bool = False) -> Any:
    """An application whose background queue is that long, at the level that comes of it."""
    engine = FakeEngine(says("x"))
    engine.queued = {"background": background}
    app = make_app(engine, settings=SETTINGS, free=lambda: MANY)
    app.degradation.look()
    if draining:
        app.degradation.drain()
    return app


@pytest.mark.parametrize(
    ("background", "tier", "status", "code"),
    [
        (0, "flex", 200, None),
        (127, "flex", 200, None),
        (128, "flex", 429, "shed_background"),
        (128, "default", 200, None),
        (231, "flex", 429, "shed_background"),
        (231, "default", 200, None),
    ],
)
async def test_background_is_shed_first(background: int, tier: str, status: int, code: str | None) -> None:
    """Half its queue while busy, nothing while constrained; interactive requests pass."""
    reply = await ask(app_at(background), "POST", "/v1/chat/completions", chat_body(service_tier=tier))
    assert reply.status == status
    if code is not None:
        assert reply.error["code"] == code
        assert int(reply.headers["retry-after"]) >= 10


async def test_busy_background_fills_half_its_queue() -> None:
    """The level is a second old, the count is not."""
    app = app_at(128)
    app.degradation._engine.queued = {"background": 127}
    assert (await ask(app, "POST", "/v1/chat/completions", chat_body(service_tier="flex"))).status == 200


@pytest.mark.parametrize("tier", ["flex", "default"])
async def test_draining_takes_nothing_new(tier: str) -> None:
    """503 with the time that is left, and /health sends load balancers elsewhere; looking is still allowed."""
    app = app_at(0, draining=True)
    reply = await ask(app, "POST", "/v1/chat/completions", chat_body(service_tier=tier))
    assert (reply.status, reply.error["code"]) == (503, "draining")
    assert 28 <= int(reply.headers["retry-after"]) <= 30
    health = await ask(app, "GET", "/health")
    assert (health.status, health.json()["status"], health.json()["ready"]) == (503, "draining", False)
    assert (await ask(app, "GET", "/v1/models")).status == 200


async def test_the_level_is_shown() -> None:
    """In /health, in /status and in /metrics."""
    app = app_at(128)
    health = (await ask(app, "GET", "/health")).json()
    assert (health["level"], health["ready"]) == ("busy", True)
    assert health["reasons"] == ["background queue 128 (begins at 124, ends below 62)"]
    assert (await ask(app, "GET", "/status")).json()["level"] == "busy"
    assert 'poise_level{level="busy"} 1.0' in (await ask(app, "GET", "/metrics")).body.decode()


class _Crowded(FakeEngine):
    """Says whose requests wait."""

    by_account: dict[str, int] = {}  # noqa: RUF012 - of each instance

    def queued_by_account(self, request_class: RequestClass) -> dict[str, int]:
        return self.by_account


def test_what_one_account_queues_changes_nothing_for_others() -> None:
    """It fills its part of both queues, and the server is as normal as before. Beside others it counts for a quarter, at most."""
    server = Server()
    server.it._engine = server.engine = engine = _Crowded()
    engine.by_account = {"greedy": 1000}
    assert server.look(0.0) == "normal"
    server.it.check(RequestClass.BACKGROUND)
    engine.by_account = {f"t{i}": 1000 for i in range(2)}
    assert server.look(1.0) == "busy"
    engine.by_account = {f"t{i}": 1000 for i in range(4)}
    assert server.look(2.0) == "constrained"
    assert engine.adjusted == [(0.5, 0.5)]
