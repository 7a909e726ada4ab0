"""What the gateway counts of its requests, as /metrics shows it, and the recent figures that /status shows.

The gateway reports what it sees of its requests here; the engine's own counters and levels are read from its last status
message at the time of a scrape. No label has more values than the configuration has classes, pools and error codes: tenants
and clients are no labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import product
from math import ceil

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.exposition import generate_latest

from poise.metrics.engine import EngineCollector, EngineReading
from poise.metrics.recovery import RecoveryMetrics
from poise.metrics.streams import GAPS_S, WAITS_S, StreamMetrics
from poise.metrics.tally import ClassCounter, ClassHistogram
from poise.scheduler.request import RequestClass

NO_CLASS = "none"
"""Class label of requests that were refused before their class was known."""

CHANGES = ("pause", "stall", "swap", "drop", "resume", "downgrade", "lost", "recover")

RECENT_S = 60.0
RATE_S = 5.0
_RECENT_MAX = 4096


class GatewayMetrics:
    """The metrics of one gateway, in a registry of its own. Times are seconds of one monotonic clock, passed in."""

    def __init__(self, read_engine: Callable[[], EngineReading], recovery: RecoveryMetrics | None = None) -> None:
        self.recovery = recovery or RecoveryMetrics()
        self.registry = registry = CollectorRegistry()
        self._ttft = ClassHistogram(
            registry, "poise_ttft_seconds", "From the arrival of a request to its first token.", WAITS_S
        )
        self._gap = ClassHistogram(
            registry,
            "poise_inter_token_seconds",
            "Between two arrivals of tokens in one choice.",
            GAPS_S,
        )
        self._queue_wait = ClassHistogram(
            registry, "poise_queue_wait_seconds", "In the scheduler's queue, as the engine measured it.", WAITS_S
        )
        self._duration = ClassHistogram(
            registry, "poise_request_seconds", "From the arrival of a request to the end of a choice.", WAITS_S
        )
        self._prompt_tokens = ClassCounter(
            registry,
            "poise_prompt_tokens",
            "Prompt tokens of accepted requests, each prompt counted once, as in their usage.",
        )
        self._output_tokens = ClassCounter(registry, "poise_output_tokens", "Tokens received from the engine.")
        self._disconnects = ClassCounter(
            registry, "poise_client_disconnects", "Requests whose client left before the answer was complete."
        )
        self._long_systems = ClassCounter(
            registry,
            "poise_long_system_prompts",
            "Conversations whose system messages take more than long_system_share of the context.",
        )
        self._requests = Counter(
            "poise_requests_total",
            "Choices that ended, by outcome: stop, length, cancelled, reader_timeout, expired, engine_lost, quarantined, "
            "server_stopping, failed.",
            ("class", "outcome"),
            registry=registry,
        )
        self._rejected = Counter(
            "poise_rejected_total",
            "Generation requests answered with an error before anything was computed, by error code. "
            "Class 'none': refused before the class was known.",
            ("class", "reason"),
            registry=registry,
        )
        self._changes = Counter(
            "poise_changes_total",
            "What happened to running choices, as their streams are told.",
            ("class", "change"),
            registry=registry,
        )
        for request_class, change in product(RequestClass, CHANGES):
            self._changes.labels(request_class.value, change)
        self.n_open = 0
        """HTTP requests being answered."""
        open_requests = Gauge("poise_open_requests", "HTTP requests being answered.", registry=registry)
        open_requests.set_function(lambda: self.n_open)
        self.recent_ttft = {name.value: RecentTimes(RECENT_S) for name in RequestClass}
        self.streams = StreamMetrics(registry)
        registry.register(EngineCollector(read_engine))
        registry.register(self.recovery.registry)

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)

    def accepted(self, request_class: str, n_prompt: int) -> None:
        self._prompt_tokens.add(request_class, n_prompt)

    def started(self, request_class: str, wait_s: float) -> None:
        self._queue_wait.observe(request_class, wait_s)

    def first_tokens(self, request_class: str, n_tokens: int, ttft_s: float, now_s: float) -> None:
        self._ttft.observe(request_class, ttft_s)
        self._output_tokens.add(request_class, n_tokens)
        self.recent_ttft[request_class].add(now_s, ttft_s)

    def more_tokens(self, request_class: str, n_tokens: int, gap_s: float) -> None:
        self._gap.observe(request_class, gap_s)
        self._output_tokens.add(request_class, n_tokens)

    def ended(self, request_class: str, outcome: str, duration_s: float) -> None:
        self._requests.labels(request_class, outcome).inc()
        self._duration.observe(request_class, duration_s)

    def changed(self, request_class: str, change: str) -> None:
        self._changes.labels(request_class, change).inc()

    def rejected(self, request_class: str | None, reason: str) -> None:
        self._rejected.labels(request_class or NO_CLASS, reason).inc()

    def long_system_prompt(self, request_class: str) -> None:
        self._long_systems.add(request_class, 1)

    def disconnected(self, request_class: str) -> None:
        self._disconnects.add(request_class, 1)


class RecentTimes:
    """Durations of the last `horizon_s` seconds, the newest few thousand at most."""

    def __init__(self, horizon_s: float) -> None:
        self._horizon_s = horizon_s
        self._times: deque[tuple[float, float]] = deque(maxlen=_RECENT_MAX)

    def add(self, now_s: float, duration_s: float) -> None:
        self._times.append((now_s, duration_s))

    def summary_ms(self, now_s: float) -> dict[str, float | int | None]:
        """Median and 95th percentile by nearest rank (None without any), and how many there are."""
        while self._times and self._times[0][0] < now_s - self._horizon_s:
            self._times.popleft()
        values = sorted(duration for _, duration in self._times)
        return {"p50": _rank_ms(values, 0.50), "p95": _rank_ms(values, 0.95), "count": len(values)}


class TokenRates:
    """Tokens per second over the last few seconds, from a counter pair that is read now and then."""

    def __init__(self, horizon_s: float = RATE_S) -> None:
        self._horizon_s = horizon_s
        self._samples: deque[tuple[float, int, int]] = deque()

    def sample(self, now_s: float, prompt_tokens: int, output_tokens: int) -> None:
        """Note the counters. Counters that went back are those of a new engine: what was noted before is forgotten."""
        last = self._samples[-1] if self._samples else None
        if last is not None and (prompt_tokens < last[1] or output_tokens < last[2]):
            self._samples.clear()
        self._samples.append((now_s, prompt_tokens, output_tokens))
        # One sample from before the horizon is kept: it is the one to count from.
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - self._horizon_s:
            self._samples.popleft()

    def per_second(self) -> tuple[float, float]:
        """Of prompt and output, between the oldest and the newest sample."""
        if len(self._samples) < 2:
            return 0.0, 0.0
        (then_s, prompt_then, output_then), (now_s, prompt_now, output_now) = self._samples[0], self._samples[-1]
        elapsed_s = now_s - then_s
        if elapsed_s <= 0:
            return 0.0, 0.0
        return (prompt_now - prompt_then) / elapsed_s, (output_now - output_then) / elapsed_s


def _rank_ms(values: list[float], share: float) -> float | None:
    """The smallest value that at least `share` of the sorted values do not exceed."""
    return round(values[ceil(share * len(values)) - 1] * 1000, 3) if values else None
