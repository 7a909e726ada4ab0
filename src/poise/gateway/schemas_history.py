"""What the OpenAPI document says about the history."""

from __future__ import annotations

from typing import Literal

from poise.gateway.answer_schemas import Closed
from poise.gateway.fields import Schema
from poise.gateway.schemas import LevelName


class TtftFigures(Closed):
    count: int
    p50: float
    p95: float
    max: float


class ItlFigures(Closed):
    count: int
    p50: float
    p99: float
    max: float


class ClassSample(Closed):
    queued: int
    running: int
    paused: int
    swapped: int
    wait_estimate_ms: int
    wait_error: float
    ttft_ms: TtftFigures | None
    itl_ms: ItlFigures | None
    output_tokens_per_s: float
    finished: dict[str, int]
    refused: dict[str, int]
    jain: float
    gap_ms: int


class StepSample(Closed):
    count: int
    p50_ms: float
    p95_ms: float
    busy: float
    parts: dict[str, float]
    decode_tokens: float
    prompt_tokens: float
    sequences: float
    cost_ratio: float | None


class PoolSample(Closed):
    name: str
    slots: int
    slots_held: int
    slots_warm: int
    cells: int
    cells_used: int
    cells_warm: int
    holes: int


class StoreSample(Closed):
    budget_bytes: int
    bytes_by_purpose: dict[str, int]


class MemorySample(Closed):
    engine_rss_bytes: int | None
    engine_unaccounted_bytes: int | None
    gateway_rss_bytes: int


class ReaderSample(Closed):
    behind: int
    timed_out: int


class Sample(Closed):
    seq: int
    at: float
    phase: Literal["loading", "ready", "restarting", "failed", "stopped"]
    level: LevelName
    restarts: int
    recovering: int
    limit: str | None
    limited: dict[str, float]
    classes: dict[str, ClassSample]
    refused: dict[str, int]
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    steps: StepSample | None
    pools: list[PoolSample]
    store: StoreSample | None
    memory: MemorySample
    threads: int
    preemptions: dict[str, int]
    stored_bytes: int
    loaded_bytes: int
    recomputed_tokens: int
    readers: ReaderSample


class HistoryBody(Closed):
    period_s: float
    next: int
    samples: list[Sample]


SINCE_PARAMETER: Schema = {
    "name": "since",
    "in": "query",
    "required": False,
    "description": "The `next` of an earlier answer: only the samples from that one on.",
    "schema": {"type": "string", "pattern": "^[0-9]{1,15}$"},
}
