"""What operators and the page ask: is it up, how does it stand, what has it counted.

Everything is answered from snapshots that are in the gateway already: looking cannot slow the engine down.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.engine_client import EngineClient, EnginePhase, EngineUnavailable
from poise.gateway.errors import engine_unavailable, retry_after
from poise.gateway.tenants import Tenants
from poise.gateway.text import TextSlot
from poise.metrics.gateway import EngineReading, GatewayMetrics, TokenRates
from poise.scheduler.request import RequestClass
from poise.wire.messages import PoolInfo, Status

SAMPLE_EVERY_S = 1.0


class Health:
    """Answers /health, /health/live, /status, /metrics and /admin/journal."""

    def __init__(
        self, engine: EngineClient, text: TextSlot, tenants: Tenants, metrics: GatewayMetrics, model_name: str
    ) -> None:
        self._engine = engine
        self._text = text
        self._tenants = tenants
        self._metrics = metrics
        self._model_name = model_name
        self._rates = TokenRates()
        self._started_s = time.monotonic()

    async def health(self, _: Request) -> Response:
        state, status = self._engine.state, self._status()
        ready = status == "ok"
        body = {
            "status": status,
            "live": True,
            "ready": ready,
            "progress": state.progress,
            "stage": state.stage,
            "detail": state.detail,
            "restarts": state.restarts,
            "model": self._model_name,
        }
        return _json(body, 200 if ready else 503, {} if ready else retry_after(state.retry_after_s))

    async def live(self, _: Request) -> Response:
        """The gateway answers: whatever the engine does, the process needs no restart."""
        return _json({"status": "ok", "live": True})

    async def status(self, _: Request) -> Response:
        state = self._engine.state
        prompt, output = self._rates.per_second()
        body = {
            "phase": state.phase.value,
            "model": self._model_name,
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "progress": state.progress,
            "stage": state.stage,
            "detail": state.detail,
            "restarts": state.restarts,
            "open_requests": self._metrics.n_open,
            "classes": self._classes(state.status),
            "pools": _pools(state.ready.pools if state.ready else [], state.status),
            "tokens_per_s": {"prompt": round(prompt, 1), "output": round(output, 1)},
            "engine_rss_bytes": state.status.rss_bytes if state.status else None,
        }
        return _json(body)

    async def metrics(self, _: Request) -> Response:
        return Response(self._metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def journal(self, request: Request) -> Response:
        """The engine's flight recorder: token counts and decisions, no text."""
        self._tenants.check_admin(request)
        try:
            lines = await self._engine.journal()
        except EngineUnavailable as error:
            raise engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent) from None
        return Response("".join(f"{line}\n" for line in lines), media_type="application/x-ndjson")

    async def sample_forever(self) -> None:
        """Note the engine's token counters once a second, for the rates in /status."""
        while True:
            status = self._engine.state.status
            if status is not None:
                self._rates.sample(time.monotonic(), status.prompt_tokens, status.output_tokens)
            await asyncio.sleep(SAMPLE_EVERY_S)

    def _status(self) -> str:
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
                "wait_estimate_ms": figures.wait_estimate_us // 1000 if figures else None,
                "ttft_ms": self._metrics.recent_ttft[name.value].summary_ms(now_s),
            }
        return classes


def read_engine(engine: EngineClient) -> EngineReading:
    """The engine as /metrics shows it."""
    state = engine.state
    return EngineReading(state.phase is EnginePhase.READY, state.restarts, state.status)


def _pools(built: list[PoolInfo], status: Status | None) -> list[dict[str, Any]]:
    """The pools as they were built, with what they hold if the engine has told."""
    held = {pool.name: pool for pool in status.pools} if status is not None else {}
    return [
        {
            "name": pool.name,
            "slots": pool.n_slots,
            "slots_held": held[pool.name].slots_held if pool.name in held else 0,
            "cells": held[pool.name].cells if pool.name in held else pool.n_slots * pool.slot_cells,
            "cells_used": held[pool.name].cells_used if pool.name in held else 0,
            "slot_cells": pool.slot_cells,
            "flash_attention": pool.flash_attention,
            "kv_bytes": pool.kv_bytes,
        }
        for pool in built
    ]


def _json(body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # Numbers of this moment: a cache between would show old ones.
    headers = {"Cache-Control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(body), status, headers, "application/json")
