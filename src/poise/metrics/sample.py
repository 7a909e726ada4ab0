"""One sample of the history: how things stand now, and what the engine's counters say of the time since the last sample.

The counters begin again with every engine; those of a new one are counted from 0, so that nothing is ever negative."""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import msgspec

from poise.metrics.lately import ClassEvents, ranks_ms
from poise.scheduler.request import RequestClass
from poise.scheduler.snapshot import ClassStatus
from poise.wire.figures import Bottleneck, Distribution, StepFigures
from poise.wire.status import Status

RATE_SAMPLES = 5
"""Samples whose mean is the present rate of tokens."""
_PHASES = msgspec.Meta(extra_json_schema={"enum": ["loading", "ready", "restarting", "failed", "stopped"]})
_LEVELS = msgspec.Meta(extra_json_schema={"enum": ["normal", "busy", "constrained", "degraded", "draining"]})
_NO_CLASS = ClassStatus(0, 0, 0)
_NOTHING = Status(0, {}, [], 0, 0, 0, 0)


class TtftFigures(msgspec.Struct, frozen=True):
    count: int
    p50: float
    p95: float
    max: float


class ItlFigures(msgspec.Struct, frozen=True):
    count: int
    p50: float
    p99: float
    max: float


class ClassSample(msgspec.Struct, frozen=True, kw_only=True):
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


class StepSample(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    p50_ms: float
    p95_ms: float
    busy: float
    parts: dict[str, float]
    decode_tokens: float
    prompt_tokens: float
    sequences: float
    cost_ratio: float | None


class PoolSample(msgspec.Struct, frozen=True):
    name: str
    slots: int
    slots_held: int
    slots_warm: int
    cells: int
    cells_used: int
    cells_warm: int
    holes: int


class StoreSample(msgspec.Struct, frozen=True):
    budget_bytes: int
    bytes_by_purpose: dict[str, int]


class MemorySample(msgspec.Struct, frozen=True):
    engine_rss_bytes: int | None
    engine_unaccounted_bytes: int | None
    gateway_rss_bytes: int


class ReaderSample(msgspec.Struct, frozen=True):
    behind: int
    timed_out: int


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    seq: int
    at: float
    phase: Annotated[str, _PHASES]
    level: Annotated[str, _LEVELS]
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


@dataclass(frozen=True, slots=True)
class Scene:
    """What the gateway knows at the moment of a sample, the `seq`th, at Unix time `at`."""

    seq: int
    at: float
    phase: str
    level: str
    restarts: int
    n_recovering: int
    """Choices that wait for another engine."""
    n_behind: int
    """Streams that wait for their client."""
    n_timeouts: int
    """Streams in all that were closed because their client took nothing."""
    gateway_rss_bytes: int
    status: Status | None
    classes: Mapping[str, ClassEvents]
    unclassed: Mapping[str, int]
    """Refused requests of no class, by error code."""


class TokensPerSecond(NamedTuple):
    """That an engine computed."""

    prompt: float = 0.0
    output: float = 0.0


class HistorySampler:
    """Makes samples, each of the time since the one before."""

    def __init__(self) -> None:
        self._before = _NOTHING
        self._restarts = 0
        self._n_timeouts = 0
        self._limited: dict[str, float] = {}
        self._computed: deque[tuple[float, int, int]] = deque(maxlen=RATE_SAMPLES)
        """Of each of the last samples: its seconds, and the tokens of prompts and of output."""

    @property
    def tokens_per_s(self) -> TokensPerSecond:
        """Over the last few samples."""
        elapsed_s = sum(seconds for seconds, _, _ in self._computed)
        if not elapsed_s:
            return TokensPerSecond()
        n_prompt, n_output = (sum(each[i] for each in self._computed) for i in (1, 2))
        return TokensPerSecond(round(n_prompt / elapsed_s, 1), round(n_output / elapsed_s, 1))

    def sample(self, scene: Scene, elapsed_s: float, now_ns: int) -> Sample:
        """`elapsed_s` since the last one, above 0; `now_ns` is of the engine's clock, the system's monotonic one."""
        status = scene.status or _NOTHING
        if scene.restarts != self._restarts or status.step < self._before.step:
            self._before, self._limited, self._restarts = _NOTHING, {}, scene.restarts
            self._computed.clear()
        before, has_status = self._before, scene.status is not None
        n_prompt = n_output = 0
        if has_status:
            n_prompt = max(0, status.prompt_tokens - before.prompt_tokens)
            n_output = max(0, status.output_tokens - before.output_tokens)
            self._before = status
        self._computed.append((elapsed_s, n_prompt, n_output))
        n_timeouts, self._n_timeouts = scene.n_timeouts - self._n_timeouts, scene.n_timeouts
        totals, had = status.totals, before.totals
        rss_bytes, unaccounted = (status.rss_bytes, status.unaccounted_bytes) if has_status else (None, None)
        return Sample(
            seq=scene.seq,
            at=scene.at,
            phase=scene.phase,
            level=scene.level,
            restarts=scene.restarts,
            recovering=scene.n_recovering,
            limit=status.bottleneck.limit if has_status else None,
            limited=self._shares(status.bottleneck, now_ns) if has_status else {},
            classes={name: _class(events, status, name, elapsed_s) for name, events in scene.classes.items()},
            refused=sum((events.refused for events in scene.classes.values()), Counter(scene.unclassed)),
            prompt_tokens_per_s=round(n_prompt / elapsed_s, 1),
            output_tokens_per_s=round(sum(events.n_tokens for events in scene.classes.values()) / elapsed_s, 1),
            steps=_steps(status.steps, before.steps, elapsed_s) if has_status else None,
            pools=msgspec.convert(status.pools, list[PoolSample], from_attributes=True),
            store=msgspec.convert(status.store, StoreSample | None, from_attributes=True),
            memory=MemorySample(rss_bytes, unaccounted, scene.gateway_rss_bytes),
            threads=status.threads,
            preemptions={kind: max(0, n - had.preemptions.get(kind, 0)) for kind, n in totals.preemptions.items()},
            stored_bytes=max(0, totals.stored_bytes - had.stored_bytes),
            loaded_bytes=max(0, totals.loaded_bytes - had.loaded_bytes),
            # Counted when cells go, and taken back if they are found.
            recomputed_tokens=max(0, totals.recomputed_tokens - had.recomputed_tokens),
            readers=ReaderSample(scene.n_behind, n_timeouts),
        )

    def _shares(self, bottleneck: Bottleneck, now_ns: int) -> dict[str, float]:
        """Of the time since the last sample, by what limited progress. An engine that rests tells nothing: its limit goes on.

        A busy one may have gone on to something else just before. What that says too much is missing from the next sample, and
        never below 0."""
        limited: dict[str, float] = dict(bottleneck.limited_us)
        if bottleneck.limit and bottleneck.since_ns:
            since_us = max(0, now_ns - bottleneck.since_ns) / 1000
            limited[bottleneck.limit] = limited.get(bottleneck.limit, 0.0) + since_us
        spent = {name: max(0.0, us - self._limited.get(name, 0.0)) for name, us in limited.items()}
        self._limited = limited
        whole = sum(spent.values())
        return {name: round(us / whole, 4) if whole else 0.0 for name, us in spent.items()}


def _class(events: ClassEvents, status: Status, name: str, elapsed_s: float) -> ClassSample:
    stands = status.classes.get(RequestClass(name), _NO_CLASS)
    ttft_s, itl_s = events.ttft_s, events.itl_s
    return ClassSample(
        queued=stands.queued,
        running=stands.running,
        paused=stands.paused,
        swapped=stands.swapped,
        wait_estimate_ms=stands.wait_estimate_us // 1000,
        wait_error=stands.wait_error,
        ttft_ms=TtftFigures(len(ttft_s), *ranks_ms(ttft_s, 50, 95, 100)) if ttft_s else None,
        itl_ms=ItlFigures(len(itl_s), *ranks_ms(itl_s, 50, 99, 100)) if itl_s else None,
        output_tokens_per_s=round(events.n_tokens / elapsed_s, 1),
        finished=events.finished,
        refused=events.refused,
        jain=stands.jain,
        gap_ms=stands.gap_us // 1000,
    )


def _steps(now: StepFigures, before: StepFigures, elapsed_s: float) -> StepSample | None:
    """None when there was no step."""
    seconds = _since(now.seconds, before.seconds)
    n_steps = sum(seconds.counts)
    if not n_steps:
        return None
    parts = {part: max(0, us - before.parts_us.get(part, 0)) for part, us in now.parts_us.items()}
    whole_us = sum(parts.values())
    ratio = _since(now.cost_ratio, before.cost_ratio)
    n_ratios = sum(ratio.counts)
    return StepSample(
        count=n_steps,
        p50_ms=round(quantile(seconds, 0.50) * 1000, 1),
        p95_ms=round(quantile(seconds, 0.95) * 1000, 1),
        busy=round(min(1.0, seconds.total / elapsed_s), 4),
        parts={part: round(us / whole_us, 4) if whole_us else 0.0 for part, us in parts.items()},
        decode_tokens=_mean(_since(now.decode_tokens, before.decode_tokens), n_steps),
        prompt_tokens=_mean(_since(now.prompt_tokens, before.prompt_tokens), n_steps),
        sequences=_mean(_since(now.sequences, before.sequences), n_steps),
        cost_ratio=_mean(ratio, n_ratios) if n_ratios else None,
    )


def _since(now: Distribution, before: Distribution) -> Distribution:
    """What was added to a histogram."""
    if len(now.counts) != len(before.counts):
        return now
    counts = tuple(max(0, n - had) for n, had in zip(now.counts, before.counts, strict=True))
    return Distribution(now.bounds, counts, max(0.0, now.total - before.total))


def quantile(distribution: Distribution, share: float) -> float:
    """Estimated within its bucket, as Prometheus does it; above the last bound, that bound. There must be a count."""
    rank, below = share * sum(distribution.counts), 0.0
    lower = 0.0
    for bound, n in zip(distribution.bounds, distribution.counts, strict=False):
        if n and below + n >= rank:
            return lower + (bound - lower) * (rank - below) / n
        below += n
        lower = bound
    return lower


def _mean(distribution: Distribution, n: int) -> float:
    return round(distribution.total / n, 2)
