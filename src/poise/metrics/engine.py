"""The engine's last status message as metrics, at the time of a scrape."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from poise.wire.figures import Bottleneck, Distribution, Equity, StepFigures, StructureFigures, Totals
from poise.wire.status import ClassStatus, PoolStatus, Status, StoreStatus

_PAUSED = "Choices that stand still: an operator paused them, or their reader is behind."
_WAIT_ERROR = "Mean of |log(waited / estimated)| over recent starts that waited; 0.7 is a factor of two."
_CLASS_LEVELS: tuple[tuple[str, str, Callable[[ClassStatus], float]], ...] = (
    ("queued_requests", "Choices waiting in the scheduler's queue.", lambda c: c.queued),
    ("running_requests", "Choices being computed.", lambda c: c.running),
    ("paused_requests", _PAUSED, lambda c: c.paused),
    ("swapped_requests", "Choices whose KV cells are in the host store.", lambda c: c.swapped),
    ("wait_estimate_seconds", "Estimated queue wait of a new request.", lambda c: c.wait_estimate_us / 1e6),
    ("wait_estimate_error", _WAIT_ERROR, lambda c: c.wait_error),
)
_POOL_LEVELS = {
    "slots": "Slots of the pool.",
    "slots_held": "Slots that a sequence holds.",
    "slots_warm": "Free slots that keep what a finished sequence left.",
    "slots_peak": "Most slots held at once.",
    "cells": "KV cells of the pool.",
    "cells_used": "KV cells that hold a token.",
    "cells_warm": "KV cells in warm slots.",
    "cells_peak": "Most KV cells used at once.",
    "cells_held": "KV cells of the slots that are held, used or not.",
    "holes": "Free slots below the highest one that is held.",
}
"""By field of a PoolStatus."""
_TOTALS = {
    "resumes": "Preempted choices that went on.",
    "downgrades": "Choices that became background work.",
    "expired": "Choices that waited as long as they may.",
    "prefix_hits": "Prompts of which a beginning needed no computing.",
    "recomputed_tokens": "Tokens computed again after their KV cells were given up.",
    "evicted_entries": "Entries that the host store gave up for others.",
    "stored_bytes": "Bytes carried into the host store.",
    "loaded_bytes": "Bytes carried from the host store.",
    "unstored": "Choices whose KV cells were dropped because the host store was full.",
}
"""By field of Totals."""
_STEP_FIGURES = {
    "step_seconds": "Whole steps.",
    "step_decode_tokens": "Decode tokens in a step.",
    "step_prompt_tokens": "Prompt tokens in a step.",
    "step_sequences": "Sequences in a step.",
    "chunk_tokens": "Tokens of a chunk of a prompt.",
    "cost_ratio": "Measured over predicted time of a forward pass: the cost model's error.",
}
"""By field of StepFigures, some with `step_` before it."""


@dataclass(frozen=True, slots=True)
class EngineReading:
    """The engine at the time of a scrape. `status` None: it has sent none (yet, or since it was lost)."""

    up: bool
    restarts: int
    status: Status | None


class EngineCollector:
    """Turns the engine's last status into metrics when they are asked for."""

    def __init__(self, read_engine: Callable[[], EngineReading], now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """`now_ns` is the engine's clock: the system's monotonic one, which all processes share."""
        self._read_engine = read_engine
        self._now_ns = now_ns
        self._least = _Least()

    def describe(self) -> Iterator[Metric]:
        """Nothing: otherwise the registry would collect once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        reading = self._read_engine()
        self._least.of_engine(reading.restarts)
        yield GaugeMetricFamily("poise_engine_up", "1 while the engine takes requests, else 0.", reading.up)
        yield CounterMetricFamily("poise_engine_restarts", "Times the engine was started again.", reading.restarts)
        if reading.status is not None:
            status = reading.status
            for name, text, value in _CLASS_LEVELS:
                levels = {of: value(figures) for of, figures in status.classes.items()}
                yield _labelled(GaugeMetricFamily, name, text, "class", levels)
            yield from _pool_levels(status.pools)
            if status.store is not None:
                yield from _store_levels(status.store)
            yield GaugeMetricFamily("poise_engine_threads", "Threads that compute now.", status.threads)
            text = "Resident memory of the engine process."
            yield GaugeMetricFamily("poise_engine_rss_bytes", text, status.rss_bytes)
            text = "Resident memory besides weights, KV cells and host store."
            yield GaugeMetricFamily("poise_engine_unaccounted_bytes", text, status.unaccounted_bytes)
            yield from _counters(status)
            yield from _totals(status.totals, self._least)
            yield from _steps(status.steps)
            yield from _structure(status.structure)
            yield from _equity(status.equity)
            yield from _bottleneck(status.bottleneck, self._now_ns(), self._least)


class _Least:
    """What was exported of counters that can be too high at first: Prometheus takes a counter that goes back for a new one."""

    def __init__(self) -> None:
        self._exported: dict[str, float] = {}
        self._restarts = -1

    def of_engine(self, restarts: int) -> None:
        """The counters are those of the engine after so many restarts."""
        if restarts != self._restarts:
            self._exported, self._restarts = {}, restarts

    def __call__(self, name: str, value: float) -> float:
        self._exported[name] = value = max(value, self._exported.get(name, 0.0))
        return value


def _bottleneck(bottleneck: Bottleneck, now_ns: int, least: _Least) -> Iterator[Metric]:
    """For how long each resource was the limit, with the time that has passed since the engine said so.

    An engine that rests tells nothing, and what limits it goes on doing so. One that is busy may have gone on to something else
    just before a scrape."""
    text = (
        "Time in which progress was limited by the resource: compute, kv_cells, host_memory, tenant_limits, readers, "
        "none (it computed and nobody waited), idle. They add up to the engine's life."
    )
    counter = CounterMetricFamily("poise_bottleneck_seconds", text, labels=["resource"])
    text = "1 for the resource that limits progress now, else 0."
    present = GaugeMetricFamily("poise_bottleneck", text, labels=["resource"])
    for resource, limited_us in bottleneck.limited_us.items():
        is_present = resource == bottleneck.limit
        since_us = max(0, now_ns - bottleneck.since_ns) / 1000 if is_present and bottleneck.since_ns else 0.0
        counter.add_metric([resource], least(resource, (limited_us + since_us) / 1e6))
        present.add_metric([resource], float(is_present))
    yield from (counter, present)


def _structure(figures: StructureFigures) -> Iterator[Metric]:
    times = {"build": figures.build_us / 1e6, "mask": figures.mask_us / 1e6}
    text = "Time that forms of answers took: building them, beside the steps; and masks, where a draw did not fit."
    yield _labelled(CounterMetricFamily, "structured_seconds", text, "part", times)
    numbers = {"redrawn": figures.redraws, "forced": figures.forced}
    text = "Tokens of answers with a form that were drawn again, and that needed no draw."
    yield _labelled(CounterMetricFamily, "structured_tokens", text, "how", numbers)


def _labelled(
    family: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, label: str, values: Mapping[str, float]
) -> Metric:
    metric = family(f"poise_{name}", text, labels=[label])
    for of, value in values.items():
        metric.add_metric([of], value)
    return metric


def _pool_levels(pools: list[PoolStatus]) -> Iterator[Metric]:
    for name, text in _POOL_LEVELS.items():
        values = {pool.name: getattr(pool, name) for pool in pools}
        yield _labelled(GaugeMetricFamily, f"pool_{name}", text, "pool", values)
    cells = GaugeMetricFamily("poise_pool_class_cells", "KV cells that a class uses.", labels=["pool", "class"])
    for pool in pools:
        for name, n in pool.cells_by_class.items():
            cells.add_metric([pool.name, name], n)
    yield cells


def _store_levels(store: StoreStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily("poise_store_budget_bytes", "Memory that the host store may take.", store.budget_bytes)
    yield GaugeMetricFamily("poise_store_peak_bytes", "Most memory that it took.", store.peak_bytes)
    text = "Memory that it takes, by purpose."
    yield _labelled(GaugeMetricFamily, "store_bytes", text, "purpose", store.bytes_by_purpose)
    text = "Entries of the host store, by purpose."
    yield _labelled(GaugeMetricFamily, "store_entries", text, "purpose", store.entries_by_purpose)


def _counters(status: Status) -> Iterator[Metric]:
    """Since the engine started: a restart sets them back to 0, as Prometheus expects of counters."""
    yield CounterMetricFamily("poise_engine_steps", "Steps of the engine's loop.", status.step)
    yield CounterMetricFamily("poise_engine_prompt_tokens", "Prompt tokens computed.", status.prompt_tokens)
    yield CounterMetricFamily("poise_engine_output_tokens", "Output tokens generated.", status.output_tokens)
    yield CounterMetricFamily("poise_engine_moves", "Sequences moved to another slot.", status.moves)


def _totals(totals: Totals, least: _Least) -> Iterator[Metric]:
    text = "Choices that were preempted, by kind; stall: the reader is behind."
    yield _labelled(CounterMetricFamily, "engine_preemptions", text, "kind", totals.preemptions)
    for name, text in _TOTALS.items():
        # Recomputed tokens are counted when their cells go, and taken back if they are found.
        yield CounterMetricFamily(f"poise_engine_{name}", text, least(name, getattr(totals, name)))


def _steps(steps: StepFigures) -> Iterator[Metric]:
    text = (
        "Time of the parts of all steps: drain (messages in), plan, kv (carrying cells), forward (the model), sample, "
        "account (charging and advancing), emit (messages out)."
    )
    parts_s = {part: spent_us / 1e6 for part, spent_us in steps.parts_us.items()}
    yield _labelled(CounterMetricFamily, "engine_step_part_seconds", text, "part", parts_s)
    for name, text in _STEP_FIGURES.items():
        yield _histogram(f"poise_engine_{name}", text, getattr(steps, name.removeprefix("step_")))


def _histogram(name: str, text: str, distribution: Distribution) -> Metric:
    names = [*map(str, distribution.bounds), "+Inf"]
    buckets = list(zip(names, accumulate(distribution.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=distribution.total)


def _equity(classes: Mapping[str, Equity]) -> Iterator[Metric]:
    text = "Compute that a class was served, as measured."
    served_s = {name: equity.served_us / 1e6 for name, equity in classes.items()}
    yield _labelled(CounterMetricFamily, "engine_served_seconds", text, "class", served_s)
    text = "Jain's index over what tenants of the last minute were served, by weight: 1 is even, 1/n one has all."
    jain = {name: equity.jain for name, equity in classes.items()}
    yield _labelled(GaugeMetricFamily, "fairness_jain", text, "class", jain)
    text = "How far apart the served costs, by weight, of tenants are that both have something waiting now."
    gaps_s = {name: equity.gap_us / 1e6 for name, equity in classes.items()}
    yield _labelled(GaugeMetricFamily, "fairness_gap_seconds", text, "class", gaps_s)
