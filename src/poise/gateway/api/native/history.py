"""The last ten minutes of the server, a sample a second, as dashboards ask for them.

All samples together are a megabyte: they are sent in pieces, so that a client that takes nothing holds no copy of them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway import schemas
from poise.gateway.errors import invalid_value
from poise.gateway.fields import Schema
from poise.gateway.health import LevelName
from poise.gateway.history import History
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.replies import FRESH, JSON, sent_in_pieces
from poise.gateway.schemas import Closed
from poise.gateway.tasks.pulse import PERIOD_S
from poise.gateway.tenants import Tenants

WHOLE_SAMPLES, PIECE_SAMPLES = 60, 16
"""An answer with up to so many samples is sent in one; of a longer one each piece has so many."""
_SINCE_DIGITS_MAX = 15


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


class HistoryAnswer:
    """Answers /status/history."""

    def __init__(self, history: History, tenants: Tenants) -> None:
        self._history = history
        self._tenants = tenants

    async def answer(self, request: Request) -> Response:
        """The samples from `since` on, the oldest first. A `since` of a server before this one gets all there are."""
        self._tenants.check_status(credentials_of(request))
        samples, following = self._history.since(_since(request.query_params.get("since", "0")))
        if len(samples) > WHOLE_SAMPLES:
            return sent_in_pieces(_pieces(following, samples), FRESH)
        return Response(b"".join(_pieces(following, samples)), headers=FRESH, media_type=JSON)


def add_history(app: FastAPI, history: HistoryAnswer) -> None:
    app.add_api_route(
        "/status/history",
        history.answer,
        summary="The last ten minutes, a sample a second",
        responses=schemas.answer(HistoryBody) | schemas.errors(400, 401),
        openapi_extra={"parameters": [SINCE_PARAMETER]},
    )


def _pieces(following: int, samples: Sequence[bytes]) -> Iterator[bytes]:
    """The answer in pieces. `following`: the number of the sample that is to come."""
    yield b'{"period_s":%g,"next":%d,"samples":[' % (PERIOD_S, following)
    for begin in range(0, len(samples), PIECE_SAMPLES):
        yield (b"," if begin else b"") + b",".join(samples[begin : begin + PIECE_SAMPLES])
    yield b"]}"


def _since(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= _SINCE_DIGITS_MAX):
        raise invalid_value("since", "be the 'next' of an earlier answer, a number of 0 or more", value)
    return int(value)
