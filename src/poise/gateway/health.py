"""What operators and the page ask: is it up, how does it stand, what has it counted.

Everything is answered from snapshots that are in the gateway already: looking cannot slow the engine down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from fastapi import FastAPI
from msgspec import structs
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway import schemas
from poise.gateway.degradation import Degradation
from poise.gateway.engine_client import EngineClient, EnginePhase
from poise.gateway.errors import retry_after
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.replies import fresh_json
from poise.gateway.levels import Level
from poise.gateway.lookout import Lookout
from poise.gateway.schemas import Closed
from poise.gateway.tasks import Tasks
from poise.gateway.tenants import Tenants
from poise.gateway.text.tokens import TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.sample import TokensPerSecond
from poise.scheduler.request import RequestClass
from poise.wire.messages import PoolInfo
from poise.wire.status import PoolStatus, Status, StoreStatus

LevelName = Literal["normal", "busy", "constrained", "degraded", "draining"]


class HealthBody(Closed):
    status: Literal["ok", "loading", "restarting", "failed", "stopped", "draining"]
    live: bool
    ready: bool
    progress: float
    stage: str
    detail: str
    restarts: int
    model: str
    level: LevelName
    reasons: list[str]


class LiveBody(Closed):
    status: Literal["ok"]
    live: bool


class RecentTtft(Closed):
    p50: float | None
    p95: float | None
    count: int


class ClassFigures(Closed):
    queued: int
    running: int
    paused: int
    swapped: int
    wait_estimate_ms: int | None
    wait_error: float | None
    ttft_ms: RecentTtft


class SlotFigures(Closed):
    slot: int
    state: Literal["running", "paused", "warm"]
    class_: str | None = Field(alias="class")
    cells: int


class PoolFigures(Closed):
    name: str
    slots: int
    slots_held: int
    slots_warm: int
    slots_peak: int
    cells: int
    cells_used: int
    cells_warm: int
    cells_peak: int
    cells_by_class: dict[str, int]
    cells_by_tenant: dict[str, int] | None
    holes: int
    occupied: list[SlotFigures]
    slot_cells: int
    flash_attention: bool
    kv_bytes: int


class StoreFigures(Closed):
    budget_bytes: int
    peak_bytes: int
    bytes_by_purpose: dict[str, int]
    entries_by_purpose: dict[str, int]


class TotalFigures(Closed):
    preemptions: dict[str, int]
    resumes: int
    downgrades: int
    expired: int
    prefix_hits: int
    cached_tokens: int
    recomputed_tokens: int
    evicted_entries: int
    stored_bytes: int
    loaded_bytes: int
    unstored: int


class Rates(Closed):
    prompt: float
    output: float


class FindingRow(Closed):
    finding: str
    text: str
    age_s: float
    runbook: str
    detail: dict[str, Any] | None


class TaskRow(Closed):
    name: str
    state: Literal["running", "failing", "ended", "given_up"]
    since_s: float
    failures: int
    last_error: str | None


class TextWorkerRow(Closed):
    pid: int | None
    """For operators."""
    state: Literal["starting", "ready", "busy", "waiting"]
    restarts: int


class TextFigures(Closed):
    workers: list[TextWorkerRow]
    queued: int
    queued_bytes: int


class StatusBody(Closed):
    phase: Literal["loading", "ready", "restarting", "failed", "stopped"]
    model: str
    uptime_s: float
    progress: float
    stage: str
    detail: str
    restarts: int
    level: LevelName
    reasons: list[str]
    open_requests: int
    live_choices: int
    classes: dict[str, ClassFigures]
    pools: list[PoolFigures]
    store: StoreFigures | None
    totals: TotalFigures | None
    tokens_per_s: Rates
    engine_rss_bytes: int | None
    engine_unaccounted_bytes: int | None
    bottleneck: str | None
    findings: list[FindingRow]
    text: TextFigures
    tasks: list[TaskRow]


TOLD_STRANGERS = {
    EnginePhase.FAILED: "the engine has failed; its operator can see why",
    EnginePhase.RESTARTING: "the engine is being started again",
}
"""In the place of the engine's last words."""


class Health:
    """Answers /health, /health/live, /status and /metrics."""

    def __init__(
        self,
        engine: EngineClient,
        text: TextSlot,
        tenants: Tenants,
        metrics: GatewayMetrics,
        degradation: Degradation,
        lookout: Lookout,
        tasks: Tasks,
        model_name: str,
        *,
        rates: Callable[[], TokensPerSecond],
    ) -> None:
        self._engine = engine
        self._text = text
        self._tenants = tenants
        self._metrics = metrics
        self._degradation = degradation
        self._lookout = lookout
        self._tasks = tasks
        self._model_name = model_name
        self._rates = rates
        self._started_s = time.monotonic()

    async def health(self, request: Request) -> Response:
        """For everybody. Strangers are not told what the engine's last words were: they may name files."""
        state, status = self._engine.state, self._status()
        ready = status == "ok"
        body = {
            "status": status,
            "live": True,
            "ready": ready,
            "progress": state.progress,
            "stage": state.stage,
            "detail": self._detail(request),
            "restarts": state.restarts,
            "model": self._model_name,
            **self._level(),
        }
        return fresh_json(body, 200 if ready else 503, {} if ready else retry_after(state.retry_after_s))

    async def live(self, _: Request) -> Response:
        """The gateway answers: whatever the engine does, the process needs no restart."""
        return fresh_json({"status": "ok", "live": True})

    async def status(self, request: Request) -> Response:
        """Live figures, and what to look at. Which tenants and requests there are is for operators only."""
        self._tenants.check_status(credentials_of(request))
        state, figures = self._engine.state, self._engine.state.status
        is_admin = self._tenants.is_admin(credentials_of(request))
        body = {
            "phase": state.phase.value,
            "model": self._model_name,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "progress": state.progress,
            "stage": state.stage,
            "detail": self._detail(request),
            "restarts": state.restarts,
            **self._level(),
            "open_requests": self._metrics.n_open,
            "live_choices": self._engine.n_live,
            "classes": self._classes(figures),
            "pools": _pools(state.ready.pools if state.ready else [], figures, tenants_shown=is_admin),
            "store": _store(figures.store) if figures and figures.store else None,
            "totals": structs.asdict(figures.totals) if figures else None,
            "tokens_per_s": self._rates()._asdict(),
            "engine_rss_bytes": figures.rss_bytes if figures else None,
            "engine_unaccounted_bytes": figures.unaccounted_bytes if figures else None,
            "bottleneck": figures.bottleneck.limit if figures else None,
            "findings": self._lookout.told(named=is_admin),
            "text": self._text_status(named=is_admin),
            "tasks": self._tasks.told(),
        }
        return fresh_json(body)

    async def metrics(self, request: Request) -> Response:
        """Those by tenant are for operators only."""
        self._tenants.check_status(credentials_of(request))
        text = self._metrics.exposition(tenants_shown=self._tenants.is_admin(credentials_of(request)))
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _detail(self, request: Request) -> str:
        state = self._engine.state
        return (
            state.detail if self._tenants.is_insider(credentials_of(request)) else TOLD_STRANGERS.get(state.phase, "")
        )

    def _text_status(self, *, named: bool) -> dict[str, Any]:
        """`named`: with the ids of processes."""
        status = self._text.jobs.status()
        if not named:
            status["workers"] = [worker | {"pid": None} for worker in status["workers"]]
        return status

    def _level(self) -> dict[str, Any]:
        return {"level": self._degradation.level.value, "reasons": self._degradation.reasons}

    def _status(self) -> str:
        if self._degradation.level is Level.DRAINING:
            return Level.DRAINING.value
        phase = self._engine.state.phase
        if phase is EnginePhase.READY:
            return "ok" if self._text.current is not None else EnginePhase.LOADING.value
        return phase.value

    def _classes(self, status: Status | None) -> dict[str, Any]:
        now_s = time.perf_counter()
        known = status.classes if status is not None else {}
        classes = {}
        for name in RequestClass:
            figures = known.get(name.value)
            classes[name.value] = {
                "queued": figures.queued if figures else 0,
                "running": figures.running if figures else 0,
                "paused": figures.paused if figures else 0,
                "swapped": figures.swapped if figures else 0,
                "wait_estimate_ms": figures.wait_estimate_us // 1000 if figures else None,
                "wait_error": figures.wait_error if figures else None,
                "ttft_ms": self._metrics.lately.ttft_ms(name.value, now_s),
            }
        return classes


def _pools(built: list[PoolInfo], status: Status | None, *, tenants_shown: bool) -> list[dict[str, Any]]:
    """The pools as they were built, with what they hold if the engine has told."""
    held = {pool.name: pool for pool in status.pools} if status is not None else {}
    return [_pool(pool, held.get(pool.name) or _nothing_held(pool), tenants_shown=tenants_shown) for pool in built]


def _pool(built: PoolInfo, held: PoolStatus, *, tenants_shown: bool) -> dict[str, Any]:
    return {
        "name": built.name,
        "slots": built.n_slots,
        "slots_held": held.slots_held,
        "slots_warm": held.slots_warm,
        "slots_peak": held.slots_peak,
        "cells": held.cells,
        "cells_used": held.cells_used,
        "cells_warm": held.cells_warm,
        "cells_peak": held.cells_peak,
        "cells_by_class": held.cells_by_class,
        "cells_by_tenant": held.cells_by_tenant if tenants_shown else None,
        "holes": held.holes,
        "occupied": [
            {"slot": slot.slot, "state": slot.state, "class": slot.request_class or None, "cells": slot.cells}
            for slot in held.occupied
        ],
        "slot_cells": built.slot_cells,
        "flash_attention": built.flash_attention,
        "kv_bytes": built.kv_bytes,
    }


def _nothing_held(pool: PoolInfo) -> PoolStatus:
    return PoolStatus(pool.name, 0, pool.n_slots, 0, pool.n_slots * pool.slot_cells)


def _store(store: StoreStatus) -> dict[str, Any]:
    return {
        "budget_bytes": store.budget_bytes,
        "peak_bytes": store.peak_bytes,
        "bytes_by_purpose": store.bytes_by_purpose,
        "entries_by_purpose": store.entries_by_purpose,
    }


def add_health(app: FastAPI, health: Health) -> None:
    not_ready = schemas.answer(HealthBody, 503, "Not ready to take requests.")
    app.add_api_route(
        "/health",
        health.health,
        summary="Readiness, with progress while loading",
        responses=schemas.answer(HealthBody) | not_ready,
    )
    app.add_api_route(
        "/health/live",
        health.live,
        summary="Liveness of the gateway",
        responses=schemas.answer(LiveBody),
    )
    app.add_api_route(
        "/status",
        health.status,
        summary="Live figures",
        responses=schemas.answer(StatusBody) | schemas.errors(401),
    )
    app.add_api_route(
        "/metrics",
        health.metrics,
        summary="Metrics for Prometheus",
        responses=schemas.plain("Metrics in Prometheus' text format.") | schemas.errors(401),
        response_class=Response,  # of no type of its own: its errors are JSON
    )
