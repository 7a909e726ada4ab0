"""The engine's last status message as metrics, at the time of a scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from poise.wire.figures import Bottleneck, Distribution, Equity, StepFigures, Totals
from poise.wire.status import PoolStatus, Status, StoreStatus


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
            yield from _class_levels(status)
            yield from _pool_levels(status.pools)
            if status.store is not None:
                yield from _store_levels(status.store)
            yield _gauge("poise_engine_threads", "Threads that compute now.", status.threads)
            yield _gauge("poise_engine_rss_bytes", "Resident memory of the engine process.", status.rss_bytes)
            yield _gauge(
                "poise_engine_unaccounted_bytes",
                "Resident memory besides weights, KV cells and host store.",
                status.unaccounted_bytes,
            )
            yield from _counters(status)
            yield from _totals(status.totals, self._least)
            yield from _steps(status.steps)
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
    just before a scrape.
    """
    counter = CounterMetricFamily(
        "poise_bottleneck_seconds",
        "Time in which progress was limited by the resource: compute, kv_cells, host_memory, tenant_limits, readers, "
        "none (it computed and nobody waited), idle. They add up to the engine's life.",
        labels=["resource"],
    )
    present = GaugeMetricFamily(
        "poise_bottleneck", "1 for the resource that limits progress now, else 0.", labels=["resource"]
    )
    for resource, limited_us in bottleneck.limited_us.items():
        is_present = resource == bottleneck.limit
        since_us = max(0, now_ns - bottleneck.since_ns) / 1000 if is_present and bottleneck.since_ns else 0.0
        counter.add_metric([resource], least(resource, (limited_us + since_us) / 1e6))
        present.add_metric([resource], float(is_present))
    yield from (counter, present)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)


def _by_class(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    return _family(name, text, ["class"], (((name,), value) for name, value in values.items()))


def _family(
    name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for names, value in values:
        family.add_metric(names, value)
    return family


def _class_levels(status: Status) -> Iterator[Metric]:
    classes = status.classes.items()
    yield _by_class(
        "poise_queued_requests", "Choices waiting in the scheduler's queue.", {n: c.queued for n, c in classes}
    )
    yield _by_class("poise_running_requests", "Choices being computed.", {n: c.running for n, c in classes})
    yield _by_class(
        "poise_paused_requests",
        "Choices that stand still: an operator paused them, or their reader is behind.",
        {n: c.paused for n, c in classes},
    )
    yield _by_class(
        "poise_swapped_requests", "Choices whose KV cells are in the host store.", {n: c.swapped for n, c in classes}
    )
    yield _by_class(
        "poise_wait_estimate_seconds",
        "Estimated queue wait of a new request.",
        {n: c.wait_estimate_us / 1e6 for n, c in classes},
    )
    yield _by_class(
        "poise_wait_estimate_error",
        "Mean of |log(waited / estimated)| over recent starts that waited; 0.7 is a factor of two.",
        {n: c.wait_error for n, c in classes},
    )


def _pool_levels(pools: list[PoolStatus]) -> Iterator[Metric]:
    def by_pool(name: str, text: str, value: Callable[[PoolStatus], float]) -> GaugeMetricFamily:
        return _family(name, text, ["pool"], (((pool.name,), value(pool)) for pool in pools))

    yield by_pool("poise_pool_slots", "Slots of the pool.", lambda pool: pool.slots)
    yield by_pool("poise_pool_slots_held", "Slots that a sequence holds.", lambda pool: pool.slots_held)
    yield by_pool(
        "poise_pool_slots_warm", "Free slots that keep what a finished sequence left.", lambda pool: pool.slots_warm
    )
    yield by_pool("poise_pool_slots_peak", "Most slots held at once.", lambda pool: pool.slots_peak)
    yield by_pool("poise_pool_cells", "KV cells of the pool.", lambda pool: pool.cells)
    yield by_pool("poise_pool_cells_used", "KV cells that hold a token.", lambda pool: pool.cells_used)
    yield by_pool("poise_pool_cells_warm", "KV cells in warm slots.", lambda pool: pool.cells_warm)
    yield by_pool("poise_pool_cells_peak", "Most KV cells used at once.", lambda pool: pool.cells_peak)
    yield by_pool(
        "poise_pool_cells_held", "KV cells of the slots that are held, used or not.", lambda pool: pool.cells_held
    )
    yield by_pool("poise_pool_holes", "Free slots below the highest one that is held.", lambda pool: pool.holes)
    yield _family(
        "poise_pool_class_cells",
        "KV cells that a class uses.",
        ["pool", "class"],
        (((pool.name, name), n) for pool in pools for name, n in pool.cells_by_class.items()),
    )


def _store_levels(store: StoreStatus) -> Iterator[Metric]:
    yield _gauge("poise_store_budget_bytes", "Memory that the host store may take.", store.budget_bytes)
    yield _gauge("poise_store_peak_bytes", "Most memory that it took.", store.peak_bytes)
    yield _family(
        "poise_store_bytes",
        "Memory that it takes, by purpose.",
        ["purpose"],
        (((purpose,), n) for purpose, n in store.bytes_by_purpose.items()),
    )
    yield _family(
        "poise_store_entries",
        "Entries of the host store, by purpose.",
        ["purpose"],
        (((purpose,), n) for purpose, n in store.entries_by_purpose.items()),
    )


def _counters(status: Status) -> Iterator[Metric]:
    """Since the engine started: a restart sets them back to 0, as Prometheus expects of counters."""
    yield CounterMetricFamily("poise_engine_steps", "Steps of the engine's loop.", status.step)
    yield CounterMetricFamily("poise_engine_prompt_tokens", "Prompt tokens computed.", status.prompt_tokens)
    yield CounterMetricFamily("poise_engine_output_tokens", "Output tokens generated.", status.output_tokens)
    yield CounterMetricFamily("poise_engine_moves", "Sequences moved to another slot.", status.moves)


def _totals(totals: Totals, least: _Least) -> Iterator[Metric]:
    preemptions = CounterMetricFamily(
        "poise_engine_preemptions",
        "Choices that were preempted, by kind; stall: the reader is behind.",
        labels=["kind"],
    )
    for kind, n in totals.preemptions.items():
        preemptions.add_metric([kind], n)
    yield preemptions
    for name, text, value in (
        ("resumes", "Preempted choices that went on.", totals.resumes),
        ("downgrades", "Choices that became background work.", totals.downgrades),
        ("expired", "Choices that waited as long as they may.", totals.expired),
        ("prefix_hits", "Prompts of which a beginning needed no computing.", totals.prefix_hits),
        (
            "recomputed_tokens",
            "Tokens computed again after their KV cells were given up.",
            least("recomputed", totals.recomputed_tokens),  # counted when they go, and taken back if they are found
        ),
        ("evicted_entries", "Entries that the host store gave up for others.", totals.evicted_entries),
        ("stored_bytes", "Bytes carried into the host store.", totals.stored_bytes),
        ("loaded_bytes", "Bytes carried from the host store.", totals.loaded_bytes),
        ("unstored", "Choices whose KV cells were dropped because the host store was full.", totals.unstored),
    ):
        yield CounterMetricFamily(f"poise_engine_{name}", text, value)


def _steps(steps: StepFigures) -> Iterator[Metric]:
    parts = CounterMetricFamily(
        "poise_engine_step_part_seconds",
        "Time of the parts of all steps: drain (messages in), plan, kv (carrying cells), forward (the model), sample, "
        "account (charging and advancing), emit (messages out).",
        labels=["part"],
    )
    for part, spent_us in steps.parts_us.items():
        parts.add_metric([part], spent_us / 1e6)
    yield parts
    for name, text, distribution in (
        ("engine_step_seconds", "Whole steps.", steps.seconds),
        ("engine_step_decode_tokens", "Decode tokens in a step.", steps.decode_tokens),
        ("engine_step_prompt_tokens", "Prompt tokens in a step.", steps.prompt_tokens),
        ("engine_step_sequences", "Sequences in a step.", steps.sequences),
        ("engine_chunk_tokens", "Tokens of a chunk of a prompt.", steps.chunk_tokens),
        (
            "engine_cost_ratio",
            "Measured over predicted time of a forward pass: the cost model's error.",
            steps.cost_ratio,
        ),
    ):
        yield _histogram(f"poise_{name}", text, distribution)


def _histogram(name: str, text: str, distribution: Distribution) -> Metric:
    names = [*map(str, distribution.bounds), "+Inf"]
    buckets = list(zip(names, accumulate(distribution.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=distribution.total)


def _equity(classes: Mapping[str, Equity]) -> Iterator[Metric]:
    served = CounterMetricFamily(
        "poise_engine_served_seconds", "Compute that a class was served, as measured.", labels=["class"]
    )
    for name, equity in classes.items():
        served.add_metric([name], equity.served_us / 1e6)
    yield served
    yield _by_class(
        "poise_fairness_jain",
        "Jain's index over what tenants of the last minute were served, by weight: 1 is even, 1/n one has all.",
        {name: equity.jain for name, equity in classes.items()},
    )
    yield _by_class(
        "poise_fairness_gap_seconds",
        "How far apart the served costs, by weight, of tenants are that both have something waiting now.",
        {name: equity.gap_us / 1e6 for name, equity in classes.items()},
    )
