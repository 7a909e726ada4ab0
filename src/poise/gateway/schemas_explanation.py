"""What the OpenAPI document says about explanations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from poise.gateway.answer_schemas import Closed
from poise.gateway.schemas import RequestMoment


class OtherRequests(Closed):
    """Requests of one class, of the same tenant or of others, in a span of time."""

    class_: str = Field(alias="class")
    same_tenant: bool
    requests: int
    slots: int
    prompt_tokens: int
    output_tokens: int
    ids: list[str]


class QueueFigures(Closed):
    position: int
    estimate_ms: int
    waited_ms: int
    over: bool
    held_back_ms: int
    pool: str | None
    slots: int | None
    slots_held: int
    slots_full_ms: int
    class_full_ms: int
    tenant_full_ms: int
    limited: dict[str, float]
    levels: list[str]
    others: list[OtherRequests]


class PrefillFigures(Closed):
    cached_tokens: int
    computed_tokens: int
    chunks: int
    took_ms: int
    over: bool
    away_ms: int
    passes_ms: int
    beside_tokens: int
    tokens_per_s: float | None
    others: list[OtherRequests]


class GapFigures(Closed):
    took_ms: int
    ms: int
    choice: int
    after_tokens: int
    away_ms: dict[str, int]
    recomputed_tokens: int
    largest_chunk_tokens: int | None
    largest_chunk_pass_ms: int | None
    limited: dict[str, float]
    levels: list[str]
    others: list[OtherRequests]


class DecodeFigures(Closed):
    gaps: int
    itl_p50_ms: float
    itl_p99_ms: float
    longest_gap: GapFigures


class Stop(Closed):
    what: Literal["pause", "stall", "swap", "drop", "lost"]
    choice: int
    ms: int
    for_ms: int | None
    kept_by: Literal["operator", "reader", "engine", "scheduler"]
    why: Literal["idle", "class", "tenant", "compute", "turn", "limit"] | None


class ExplanationFigures(Closed):
    class_: str = Field(alias="class")
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    outcome: str | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    recomputed_tokens: int
    lived_ms: int
    ttft_ms: int | None
    queue: QueueFigures | None
    prefill: PrefillFigures | None
    decode: DecodeFigures | None
    stops: list[Stop]
    engine_ms: int | None
    engine_share: float | None
    others_missing: bool
    others_left_out: int


class Explanation(Closed):
    id: str
    object: Literal["explanation"]
    verdict: str | None
    sentences: list[str]
    figures: ExplanationFigures
    timeline: list[RequestMoment]
