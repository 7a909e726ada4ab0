"""What the engine told in its last status message, as metrics, at the time of a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from poise.wire.messages import PoolStatus, Status, StoreStatus, Totals


@dataclass(frozen=True, slots=True)
class EngineReading:
    """The engine at the time of a scrape. `status` None: it has not told anything (yet, or since it was lost)."""

    up: bool
    restarts: int
    status: Status | None


class EngineCollector:
    """Turns the engine's last status into metrics when they are asked for."""

    def __init__(self, read_engine: Callable[[], EngineReading]) -> None:
        self._read_engine = read_engine

    def describe(self) -> Iterator[Metric]:
        """Nothing: otherwise the registry would collect once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        reading = self._read_engine()
        yield GaugeMetricFamily("poise_engine_up", "1 while the engine takes requests, else 0.", reading.up)
        yield CounterMetricFamily("poise_engine_restarts", "Times the engine was started again.", reading.restarts)
        if reading.status is not None:
            status = reading.status
            yield from _class_levels(status)
            yield from _pool_levels(status.pools)
            if status.store is not None:
                yield from _store_levels(status.store)
            yield _gauge("poise_engine_rss_bytes", "Resident memory of the engine process.", status.rss_bytes)
            yield _gauge(
                "poise_engine_unaccounted_bytes",
                "Resident memory besides weights, KV cells and host store.",
                status.unaccounted_bytes,
            )
            yield from _counters(status)
            yield from _totals(status.totals)


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
        "poise_paused_requests", "Choices that hold their slot and are not computed.", {n: c.paused for n, c in classes}
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
    yield CounterMetricFamily(
        "poise_engine_decode_seconds", "Time in the model: forward passes and sampling.", status.decode_us / 1e6
    )
    yield CounterMetricFamily(
        "poise_engine_loop_seconds", "Time of the loop itself in busy steps, besides the model.", status.loop_us / 1e6
    )
    yield CounterMetricFamily("poise_engine_moves", "Sequences moved to another slot.", status.moves)


def _totals(totals: Totals) -> Iterator[Metric]:
    preemptions = CounterMetricFamily(
        "poise_engine_preemptions", "Choices that were preempted, by kind.", labels=["kind"]
    )
    for kind, n in totals.preemptions.items():
        preemptions.add_metric([kind], n)
    yield preemptions
    for name, text, value in (
        ("resumes", "Preempted choices that went on.", totals.resumes),
        ("downgrades", "Choices that became background work.", totals.downgrades),
        ("expired", "Choices that waited as long as they may.", totals.expired),
        ("prefix_hits", "Prompts of which a beginning needed no computing.", totals.prefix_hits),
        ("cached_tokens", "Prompt tokens that needed no computing.", totals.cached_tokens),
        ("recomputed_tokens", "Tokens computed again after their KV cells were given up.", totals.recomputed_tokens),
        ("evicted_entries", "Entries that the host store gave up for others.", totals.evicted_entries),
        ("stored_bytes", "Bytes carried into the host store.", totals.stored_bytes),
        ("loaded_bytes", "Bytes carried from the host store.", totals.loaded_bytes),
    ):
        yield CounterMetricFamily(f"poise_engine_{name}", text, value)
