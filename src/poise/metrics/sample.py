"""One sample of the history: how things stand now, and what the engine's counters say of the time since the last sample.

The counters begin again with every engine; those of a new one are counted from 0, so that nothing is ever negative.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from poise.metrics.lately import ClassEvents
from poise.scheduler.request import RequestClass
from poise.wire.figures import Bottleneck, Distribution, Equity, StepFigures, Totals
from poise.wire.status import ClassStatus, PoolStatus, Status

RATE_SAMPLES = 5
"""Samples whose mean is the present rate of tokens."""
_NO_CLASS = ClassStatus(0, 0, 0)
_NOTHING = Status(0, {}, [], 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Scene:
    """What the gateway knows at the moment of a sample."""

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


class Sampler:
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

    def sample(self, scene: Scene, elapsed_s: float, now_ns: int) -> dict[str, Any]:
        """`elapsed_s` since the last one, above 0; `now_ns` is of the engine's clock, the system's monotonic one."""
        status = scene.status or _NOTHING
        if scene.restarts != self._restarts or status.step < self._before.step:
            self._before, self._limited, self._restarts = _NOTHING, {}, scene.restarts
            self._computed.clear()
        before, told = self._before, scene.status is not None
        n_prompt = n_output = 0
        if told:
            n_prompt = max(0, status.prompt_tokens - before.prompt_tokens)
            n_output = max(0, status.output_tokens - before.output_tokens)
            self._before = status
        self._computed.append((elapsed_s, n_prompt, n_output))
        n_timeouts, self._n_timeouts = scene.n_timeouts - self._n_timeouts, scene.n_timeouts
        return {
            "phase": scene.phase,
            "level": scene.level,
            "restarts": scene.restarts,
            "recovering": scene.n_recovering,
            "limit": status.bottleneck.limit if told else None,
            "limited": self._shares(status.bottleneck, now_ns) if told else {},
            "classes": {
                name.value: _class(
                    scene.classes[name.value],
                    status.classes.get(name.value, _NO_CLASS),
                    status.equity.get(name.value, Equity()),
                    elapsed_s,
                )
                for name in RequestClass
            },
            "refused": _all_refused(scene),
            "prompt_tokens_per_s": round(n_prompt / elapsed_s, 1),
            "output_tokens_per_s": round(sum(events.n_tokens for events in scene.classes.values()) / elapsed_s, 1),
            "steps": _steps(status.steps, before.steps, elapsed_s) if told else None,
            "pools": [_pool(pool) for pool in status.pools],
            "store": None
            if status.store is None
            else {"budget_bytes": status.store.budget_bytes, "bytes_by_purpose": status.store.bytes_by_purpose},
            "memory": {
                "engine_rss_bytes": status.rss_bytes if told else None,
                "engine_unaccounted_bytes": status.unaccounted_bytes if told else None,
                "gateway_rss_bytes": scene.gateway_rss_bytes,
            },
            "threads": status.threads,
            **_carried(status.totals, before.totals),
            "readers": {"behind": scene.n_behind, "timed_out": n_timeouts},
        }

    def _shares(self, bottleneck: Bottleneck, now_ns: int) -> dict[str, float]:
        """Of the time since the last sample, by what limited progress. An engine that rests tells nothing: its limit goes on.

        A busy one may have gone on to something else just before. What that told too much is missing from the next sample, and
        never below 0.
        """
        limited: dict[str, float] = dict(bottleneck.limited_us)
        if bottleneck.limit and bottleneck.since_ns:
            since_us = max(0, now_ns - bottleneck.since_ns) / 1000
            limited[bottleneck.limit] = limited.get(bottleneck.limit, 0.0) + since_us
        spent = {name: max(0.0, us - self._limited.get(name, 0.0)) for name, us in limited.items()}
        self._limited = limited
        whole = sum(spent.values())
        return {name: round(us / whole, 4) if whole else 0.0 for name, us in spent.items()}


def _class(events: ClassEvents, stands: ClassStatus, equity: Equity, elapsed_s: float) -> dict[str, Any]:
    return {
        "queued": stands.queued,
        "running": stands.running,
        "paused": stands.paused,
        "swapped": stands.swapped,
        "wait_estimate_ms": stands.wait_estimate_us // 1000,
        "wait_error": stands.wait_error,
        "ttft_ms": None if events.ttft is None else events.ttft.as_json(50, 95),
        "itl_ms": None if events.itl is None else events.itl.as_json(50, 99),
        "output_tokens_per_s": round(events.n_tokens / elapsed_s, 1),
        "finished": events.finished,
        "refused": events.refused,
        "jain": equity.jain,
        "gap_ms": equity.gap_us // 1000,
    }


def _all_refused(scene: Scene) -> dict[str, int]:
    refused = dict(scene.unclassed)
    for events in scene.classes.values():
        for reason, n in events.refused.items():
            refused[reason] = refused.get(reason, 0) + n
    return refused


def _steps(now: StepFigures, before: StepFigures, elapsed_s: float) -> dict[str, Any] | None:
    """None when there was no step."""
    seconds = _since(now.seconds, before.seconds)
    n_steps = sum(seconds.counts)
    if not n_steps:
        return None
    parts = {part: max(0, us - before.parts_us.get(part, 0)) for part, us in now.parts_us.items()}
    whole_us = sum(parts.values())
    ratio = _since(now.cost_ratio, before.cost_ratio)
    n_ratios = sum(ratio.counts)
    return {
        "count": n_steps,
        "p50_ms": round(quantile(seconds, 0.50) * 1000, 1),
        "p95_ms": round(quantile(seconds, 0.95) * 1000, 1),
        "busy": round(min(1.0, seconds.total / elapsed_s), 4),
        "parts": {part: round(us / whole_us, 4) if whole_us else 0.0 for part, us in parts.items()},
        "decode_tokens": _mean(_since(now.decode_tokens, before.decode_tokens), n_steps),
        "prompt_tokens": _mean(_since(now.prompt_tokens, before.prompt_tokens), n_steps),
        "sequences": _mean(_since(now.sequences, before.sequences), n_steps),
        "cost_ratio": _mean(ratio, n_ratios) if n_ratios else None,
    }


def _pool(pool: PoolStatus) -> dict[str, Any]:
    return {
        "name": pool.name,
        "slots": pool.slots,
        "slots_held": pool.slots_held,
        "slots_warm": pool.slots_warm,
        "cells": pool.cells,
        "cells_used": pool.cells_used,
        "cells_warm": pool.cells_warm,
        "holes": pool.holes,
    }


def _carried(now: Totals, before: Totals) -> dict[str, Any]:
    return {
        "preemptions": {kind: max(0, n - before.preemptions.get(kind, 0)) for kind, n in now.preemptions.items()},
        "stored_bytes": max(0, now.stored_bytes - before.stored_bytes),
        "loaded_bytes": max(0, now.loaded_bytes - before.loaded_bytes),
        # Counted when cells go, and taken back if they are found.
        "recomputed_tokens": max(0, now.recomputed_tokens - before.recomputed_tokens),
    }


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
