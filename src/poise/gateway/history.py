"""The last ten minutes of the server, a sample a second, in memory only: what dashboards draw.

A sample is taken of what the gateway has already, and the engine is asked for nothing: neither taking samples nor looking at
them can slow a step. Each is kept as the JSON that it is told as. No tenant is named in any. All of them together are a megabyte:
they are told in pieces, so that a client that does not take its answer holds no copy of them here.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.degradation import Degradation, own_rss_bytes
from poise.gateway.engine_client import EngineClient, EnginePhase
from poise.gateway.errors import invalid_value
from poise.gateway.slices import JSON, sent_in_pieces
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.sample import Sampler, Scene

PERIOD_S = 1.0
SAMPLES_MAX = 600
WHOLE_SAMPLES, PIECE_SAMPLES = 60, 16
"""An answer with up to so many samples is sent in one; of a longer one each piece has so many."""
FRESH = {"Cache-Control": "no-store"}
_SINCE_DIGITS_MAX = 15
_ELAPSED_S_MIN = 0.001


class _Steps(msgspec.Struct):
    cost_ratio: float | None = None


class _Told(msgspec.Struct):
    """Of a sample, what explanations read."""

    at: float
    level: str
    limited: dict[str, float]
    steps: _Steps | None = None


class Glimpse(NamedTuple):
    """Of a sample: for how many `seconds` of the asked time it counts, the level, the share of its time for each resource that
    limited progress, and how many times as long as predicted its passes took (None: there were none)."""

    seconds: float
    level: str
    limited: dict[str, float]
    cost_ratio: float | None


class History:
    """Takes the samples, and answers /status/history."""

    def __init__(
        self,
        engine: EngineClient,
        metrics: GatewayMetrics,
        degradation: Degradation,
        *,
        check: Callable[[Request], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], float] = time.time,
        rss_bytes: Callable[[], int] = own_rss_bytes,
    ) -> None:
        """`check` raises ApiError for callers who may not see it."""
        self._check = check
        self._engine = engine
        self._metrics = metrics
        self._degradation = degradation
        self._clock_ns = clock_ns
        self._wall_clock = wall_clock
        self._rss_bytes = rss_bytes
        self._sampler = Sampler()
        self._samples: deque[bytes] = deque(maxlen=SAMPLES_MAX)
        self._next = 0
        self._then_ns = clock_ns()

    def sample(self) -> None:
        """Take one sample, of the time since the last one."""
        now_ns = self._clock_ns()
        elapsed_s = max(_ELAPSED_S_MIN, (now_ns - self._then_ns) / 1e9)
        figures = self._sampler.sample(self._scene(), elapsed_s, now_ns)
        at = {"seq": self._next, "at": round(self._wall_clock(), 3)}
        self._samples.append(msgspec.json.encode(at | figures))
        self._next += 1
        self._then_ns = now_ns

    def between(self, begin_at: float, end_at: float) -> list[Glimpse]:
        """Of each sample of some span of time (Unix seconds), the oldest first."""
        found = []
        for raw in reversed(self._samples):
            told = msgspec.json.decode(raw, type=_Told)
            if told.at <= begin_at:
                break
            if (seconds := min(end_at, told.at) - max(begin_at, told.at - PERIOD_S)) > 0:
                ratio = told.steps.cost_ratio if told.steps is not None else None
                found.append(Glimpse(seconds, told.level, told.limited, ratio))
        return found[::-1]

    async def answer(self, request: Request) -> Response:
        """The samples from `since` on, the oldest first. A `since` of a server before this one gets all there are."""
        self._check(request)
        since = _since(request.query_params.get("since", "0"))
        oldest = self._next - len(self._samples)
        n_known = max(0, since - oldest) if since <= self._next else 0
        samples = list(islice(self._samples, n_known, None))
        if len(samples) > WHOLE_SAMPLES:
            return sent_in_pieces(_pieces(self._next, samples), FRESH)
        return Response(b"".join(_pieces(self._next, samples)), headers=FRESH, media_type=JSON)

    def _scene(self) -> Scene:
        state, streams = self._engine.state, self._metrics.streams
        classes, unclassed = self._metrics.lately.take()
        return Scene(
            phase=state.phase.value,
            level=self._degradation.level.value,
            restarts=state.restarts,
            n_recovering=self._engine.n_live if state.phase is EnginePhase.RESTARTING else 0,
            n_behind=streams.n_stalled,
            n_timeouts=streams.n_timed_out,
            gateway_rss_bytes=self._rss_bytes(),
            status=state.status,
            classes=classes,
            unclassed=unclassed,
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
