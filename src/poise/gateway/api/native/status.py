"""What operators and the page ask: is it up, how does it stand, what has it counted, how were the last ten minutes.

Everything is answered from snapshots that are in the gateway already: looking cannot slow the engine down."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import msgspec
from msgspec import convert, structs
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.api.operation import Described, Operation, parameter
from poise.gateway.condition.degradation import Degradation
from poise.gateway.condition.findings import FindingRow
from poise.gateway.condition.history import History
from poise.gateway.condition.levels import Level
from poise.gateway.condition.lookout import Lookout
from poise.gateway.condition.power.watch import PowerBody, PowerWatch
from poise.gateway.http.connections.peers import credentials_of
from poise.gateway.http.replies import FRESH, JSON, json_reply, sent_in_pieces
from poise.gateway.models.backend import Backend
from poise.gateway.records.values import one_of
from poise.gateway.request.refusals import invalid_value, retry_after
from poise.gateway.supervision.engine import EnginePhase, EngineView
from poise.gateway.tasks import Tasks
from poise.gateway.tasks.tasks import PERIOD_S, TaskRow
from poise.gateway.tenancy.tenants import Tenants
from poise.gateway.text.tokens import TextFigures, TextJobs
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.lately import RecentTtft
from poise.metrics.sample import Sample
from poise.scheduler.memory.kv import WARM, PoolStatus
from poise.scheduler.memory.store import StoreStatus
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import State
from poise.scheduler.totals import Totals
from poise.wire.messages import PoolInfo
from poise.wire.status import Status

TOLD_STRANGERS = {
    EnginePhase.FAILED: "the engine has failed; its operator can see why",
    EnginePhase.RESTARTING: "the engine is being started again",
}
"""In the place of the engine's last words."""


class HealthBody(msgspec.Struct, frozen=True, kw_only=True):
    status: Annotated[str, one_of("ok", "loading", "restarting", "failed", "stopped", "draining")]
    live: bool = True
    ready: bool
    progress: float
    stage: str
    detail: str
    restarts: int
    model: str
    level: Level
    reasons: list[str]


class LiveBody(msgspec.Struct, frozen=True):
    status: Literal["ok"] = "ok"
    live: bool = True


class ClassFigures(msgspec.Struct, frozen=True, kw_only=True):
    queued: int = 0
    running: int = 0
    paused: int = 0
    swapped: int = 0
    wait_estimate_ms: int | None = None
    wait_error: float | None = None
    ttft_ms: RecentTtft


class SlotFigures(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    slot: int
    state: Annotated[str, one_of(State.RUNNING, State.PAUSED, WARM)]
    class_: str | None
    cells: int


class PoolFigures(msgspec.Struct, frozen=True, kw_only=True):
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


class Rates(msgspec.Struct, frozen=True):
    prompt: float
    output: float


class StatusBody(msgspec.Struct, frozen=True, kw_only=True):
    phase: EnginePhase
    model: str
    uptime_s: float
    progress: float
    stage: str
    detail: str
    restarts: int
    level: Level
    reasons: list[str]
    open_requests: int
    live_choices: int
    classes: dict[str, ClassFigures]
    pools: list[PoolFigures]
    store: StoreStatus | None
    totals: Totals | None
    tokens_per_s: Rates
    engine_rss_bytes: int | None
    engine_unaccounted_bytes: int | None
    bottleneck: str | None
    findings: list[FindingRow]
    text: TextFigures
    tasks: list[TaskRow]
    power: PowerBody


@dataclass(eq=False, repr=False)
class Health:
    """Answers /health, /health/live, /status and /metrics."""

    _engine: EngineView
    _model: Backend
    _text: TextJobs
    _tenants: Tenants
    _metrics: GatewayMetrics
    _degradation: Degradation
    _lookout: Lookout
    _history: History
    _tasks: Tasks
    _power: PowerWatch
    _started_s: float = field(default_factory=time.monotonic)

    def operations(self) -> list[Operation]:
        health = {200: Described(HealthBody), 503: Described(HealthBody, "Not ready to take requests.")}
        metrics = {200: Described(None, "Metrics in Prometheus' text format.", {"text/plain": {"type": "string"}})}
        return [
            Operation("GET", "/health", self.health, "Readiness, with progress while loading", answers=health),
            Operation("GET", "/health/live", self.live, "Liveness of the gateway"),
            Operation("GET", "/status", self.status, "Live figures", errors=[401]),
            Operation("GET", "/metrics", self.metrics, "Metrics for Prometheus", errors=[401], answers=metrics),
        ]

    async def health(self, request: Request) -> Response:
        """For everybody. Strangers are not told what the engine's last words were: they may name files."""
        status = self._status()
        ready = status == "ok"
        body = HealthBody(status=status, ready=ready, **self._standing(request))
        if ready:
            return json_reply(body)
        return json_reply(body, 503, FRESH | retry_after(self._model.state.retry_after_s))

    async def live(self, _: Request) -> LiveBody:
        """The gateway answers: whatever the engine does, the process needs no restart."""
        return LiveBody()

    async def status(self, request: Request) -> StatusBody:
        """Live figures, and what to look at. Which tenants and requests there are is for operators only."""
        self._tenants.check_status(credentials_of(request))
        state, figures = self._engine.state, self._engine.state.status
        is_admin = self._tenants.is_admin(credentials_of(request))
        text = self._text.status()
        if not is_admin:
            text = structs.replace(text, workers=[structs.replace(worker, pid=None) for worker in text.workers])
        return StatusBody(
            **self._standing(request),
            phase=state.phase,
            uptime_s=round(time.monotonic() - self._started_s, 1),
            open_requests=self._metrics.n_open,
            live_choices=self._engine.n_live,
            classes={name.value: self._class(name, figures) for name in RequestClass},
            pools=_pools(state.ready.pools if state.ready else [], figures, tenants_shown=is_admin),
            store=figures.store if figures else None,
            totals=figures.totals if figures else None,
            tokens_per_s=Rates(*self._history.tokens_per_s),
            engine_rss_bytes=figures.rss_bytes if figures else None,
            engine_unaccounted_bytes=figures.unaccounted_bytes if figures else None,
            bottleneck=figures.bottleneck.limit if figures else None,
            findings=self._lookout.rows(named=is_admin),
            text=text,
            tasks=self._tasks.rows(),
            power=self._power.body(),
        )

    async def metrics(self, request: Request) -> Response:
        """Those by tenant are for operators only."""
        self._tenants.check_status(credentials_of(request))
        text = self._metrics.exposition(tenants_shown=self._tenants.is_admin(credentials_of(request)))
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _standing(self, request: Request) -> dict[str, Any]:
        """The fields that /health and /status share."""
        state = self._engine.state
        is_insider = self._tenants.is_insider(credentials_of(request))
        return {
            "progress": state.progress,
            "stage": state.stage,
            "detail": state.detail if is_insider else TOLD_STRANGERS.get(state.phase, ""),
            "restarts": state.restarts,
            "model": self._model.card.name,
            "level": self._degradation.level,
            "reasons": self._degradation.reasons,
        }

    def _status(self) -> str:
        if self._degradation.level is Level.DRAINING:
            return Level.DRAINING.value
        phase = self._engine.state.phase
        if phase is EnginePhase.READY:
            return "ok" if self._model.state.is_ready else EnginePhase.LOADING.value
        return phase.value

    def _class(self, name: RequestClass, status: Status | None) -> ClassFigures:
        ttft_ms = self._metrics.lately.ttft_ms(name.value, time.perf_counter())
        figures = status.classes.get(name) if status is not None else None
        if figures is None:
            return ClassFigures(ttft_ms=ttft_ms)
        wait_ms = figures.wait_estimate_us // 1000
        return convert(asdict(figures) | {"wait_estimate_ms": wait_ms, "ttft_ms": ttft_ms}, ClassFigures)


def _pools(built: list[PoolInfo], status: Status | None, *, tenants_shown: bool) -> list[PoolFigures]:
    """The pools as they were built, with what they hold if the engine has said."""
    held = {pool.name: PoolStatus(pool.name, 0, pool.n_slots, 0, pool.n_slots * pool.slot_cells) for pool in built}
    held |= {pool.name: pool for pool in status.pools} if status is not None else {}
    return [_pool(pool, held[pool.name], tenants_shown=tenants_shown) for pool in built]


def _pool(built: PoolInfo, held: PoolStatus, *, tenants_shown: bool) -> PoolFigures:
    slots = [
        SlotFigures(slot=slot.slot, state=slot.state, class_=slot.request_class or None, cells=slot.cells)
        for slot in held.occupied
    ]
    by_tenant = held.cells_by_tenant if tenants_shown else None
    own = {"slots": built.n_slots, "cells_by_tenant": by_tenant, "occupied": slots}
    return convert(asdict(held) | structs.asdict(built) | own, PoolFigures)


WHOLE_SAMPLES, PIECE_SAMPLES = 60, 16
"""An answer with up to so many samples is sent in one; of a longer one each piece has so many."""
_SINCE_DIGITS_MAX = 15
_NEXT = {"type": "string", "pattern": f"^[0-9]{{1,{_SINCE_DIGITS_MAX}}}$"}
_SINCE = parameter("since", "The `next` of an earlier answer: only the samples from that one on.", _NEXT)


class HistoryBody(msgspec.Struct, frozen=True):
    period_s: float
    next: int
    samples: list[Sample]


class HistoryAnswer:
    """Answers /status/history."""

    def __init__(self, history: History, tenants: Tenants) -> None:
        self._history = history
        self._tenants = tenants

    def operations(self) -> list[Operation]:
        summary, answers = "The last ten minutes, a sample a second", {200: Described(HistoryBody)}
        return [Operation("GET", "/status/history", self.answer, summary, [400, 401], [_SINCE], answers=answers)]

    async def answer(self, request: Request) -> Response:
        """The samples from `since` on, the oldest first. A `since` of a server before this one gets all there are."""
        self._tenants.check_status(credentials_of(request))
        samples, following = self._history.since(_since(request.query_params.get("since", "0")))
        if len(samples) > WHOLE_SAMPLES:
            return sent_in_pieces(_pieces(following, samples), FRESH)
        return Response(b"".join(_pieces(following, samples)), headers=FRESH, media_type=JSON)


def _pieces(following: int, samples: Sequence[bytes]) -> Iterator[bytes]:
    """A HistoryBody in pieces. `following`: the number of the sample that is to come."""
    yield b'{"period_s":%g,"next":%d,"samples":[' % (PERIOD_S, following)
    for begin in range(0, len(samples), PIECE_SAMPLES):
        yield (b"," if begin else b"") + b",".join(samples[begin : begin + PIECE_SAMPLES])
    yield b"]}"


def _since(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= _SINCE_DIGITS_MAX):
        raise invalid_value("since", "be the 'next' of an earlier answer, a number of 0 or more", value)
    return int(value)
