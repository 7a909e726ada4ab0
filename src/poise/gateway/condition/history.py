"""The last ten minutes of the server, a sample a second, in memory only: what dashboards draw.

A sample is taken of what the gateway has already, and the engine is asked for nothing: neither taking samples nor looking at
them can slow a step. Each is kept as the JSON that is sent. No tenant is named in any."""

import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import msgspec

from poise.gateway.condition.degradation import Degradation
from poise.gateway.condition.memory import own_rss_bytes
from poise.gateway.supervision.engine import EnginePhase, EngineView
from poise.gateway.tasks.tasks import PERIOD_S
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.sample import HistorySampler, Sample, Scene, TokensPerSecond

SAMPLES_MAX = 600
_ELAPSED_S_MIN = 0.001


class History:
    """Takes the samples and keeps those of the last minutes."""

    def __init__(
        self,
        engine: EngineView,
        metrics: GatewayMetrics,
        degradation: Degradation,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], float] = time.time,
        rss_bytes: Callable[[], int] = own_rss_bytes,
    ) -> None:
        self._engine, self._metrics, self._degradation = engine, metrics, degradation
        self._clock_ns, self._wall_clock, self._rss_bytes = clock_ns, wall_clock, rss_bytes
        self._sampler = HistorySampler()
        self._samples: deque[bytes] = deque(maxlen=SAMPLES_MAX)
        self._next = 0
        self._then_ns = clock_ns()

    def sample(self) -> None:
        """Take one sample, of the time since the last one."""
        now_ns = self._clock_ns()
        elapsed_s = max(_ELAPSED_S_MIN, (now_ns - self._then_ns) / 1e9)
        self._samples.append(msgspec.json.encode(self._sampler.sample(self._scene(), elapsed_s, now_ns)))
        self._next += 1
        self._then_ns = now_ns

    @property
    def tokens_per_s(self) -> TokensPerSecond:
        """Tokens a second in the last few samples."""
        return self._sampler.tokens_per_s

    def between(self, begin_at: float, end_at: float) -> list[tuple[float, Sample]]:
        """The samples in a span of time (Unix seconds), the oldest first, and for how many seconds of it each counts."""
        found = []
        for raw in reversed(self._samples):
            sample = msgspec.json.decode(raw, type=Sample)
            if sample.at <= begin_at:
                break
            if (seconds := min(end_at, sample.at) - max(begin_at, sample.at - PERIOD_S)) > 0:
                found.append((seconds, sample))
        return found[::-1]

    def since(self, number: int) -> tuple[list[bytes], int]:
        """The samples from a number on, the oldest first, and the number that the next one gets."""
        oldest = self._next - len(self._samples)
        n_known = max(0, number - oldest) if number <= self._next else 0
        return list(islice(self._samples, n_known, None)), self._next

    def _scene(self) -> Scene:
        state, streams = self._engine.state, self._metrics.streams
        classes, unclassed = self._metrics.lately.take()
        return Scene(
            seq=self._next,
            at=round(self._wall_clock(), 3),
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
