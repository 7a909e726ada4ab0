"""The engine's last status message as metrics, at the time of a scrape."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from poise.metrics.shapes import fill
from poise.wire.figures import Bottleneck, StructureFigures
from poise.wire.status import Status

_GAUGE, _COUNTER, _HISTOGRAM = GaugeMetricFamily, CounterMetricFamily, HistogramMetricFamily
_PAUSED = "Choices that stand still: an operator paused them, or their reader is behind."
_WAIT_ERROR = "Mean of |log(waited / estimated)| over recent starts that waited; 0.7 is a factor of two."
_PARTS = (
    "Time of the parts of all steps: drain (messages in), plan, kv (carrying cells), forward (the model), sample, "
    "account (charging and advancing), emit (messages out)."
)
_PREEMPTIONS = "Choices that were preempted, by kind; stall: the reader is behind."
_RECOMPUTED = "Tokens computed again after their KV cells were given up."
_UNSTORED = "Choices whose KV cells were dropped because the host store was full."
_DRAFTS = "Guesses of lone streams' next tokens that were computed: accepted came true, rejected were computed for nothing."
_INHERITED = "Entries of the host store that an engine before had left."
_COST_RATIO = "Measured over predicted time of a forward pass: the cost model's error."
_JAIN = "Jain's index over what tenants of the last minute were served, by weight: 1 is even, 1/n one has all."
_GAP = "How far apart the served costs, by weight, of tenants are that both have something waiting now."
_FIGURES = (
    (_GAUGE, "queued_requests", ("class",), "classes.queued", "Choices waiting in the scheduler's queue."),
    (_GAUGE, "running_requests", ("class",), "classes.running", "Choices being computed."),
    (_GAUGE, "paused_requests", ("class",), "classes.paused", _PAUSED),
    (_GAUGE, "swapped_requests", ("class",), "classes.swapped", "Choices whose KV cells are in the host store."),
    (_GAUGE, "wait_estimate_seconds", ("class",), "classes.wait_estimate_us", "Estimated queue wait of a new request."),
    (_GAUGE, "wait_estimate_error", ("class",), "classes.wait_error", _WAIT_ERROR),
    (_GAUGE, "pool_slots", ("pool",), "pools.slots", "Slots of the pool."),
    (_GAUGE, "pool_slots_held", ("pool",), "pools.slots_held", "Slots that a sequence holds."),
    (_GAUGE, "pool_slots_warm", ("pool",), "pools.slots_warm", "Free slots that keep what a finished sequence left."),
    (_GAUGE, "pool_slots_peak", ("pool",), "pools.slots_peak", "Most slots held at once."),
    (_GAUGE, "pool_cells", ("pool",), "pools.cells", "KV cells of the pool."),
    (_GAUGE, "pool_cells_used", ("pool",), "pools.cells_used", "KV cells that hold a token."),
    (_GAUGE, "pool_cells_warm", ("pool",), "pools.cells_warm", "KV cells in warm slots."),
    (_GAUGE, "pool_cells_peak", ("pool",), "pools.cells_peak", "Most KV cells used at once."),
    (_GAUGE, "pool_cells_held", ("pool",), "pools.cells_held", "KV cells of the slots that are held, used or not."),
    (_GAUGE, "pool_holes", ("pool",), "pools.holes", "Free slots below the highest one that is held."),
    (_GAUGE, "pool_class_cells", ("pool", "class"), "pools.cells_by_class", "KV cells that a class uses."),
    (_GAUGE, "store_budget_bytes", (), "store.budget_bytes", "Memory that the host store may take."),
    (_GAUGE, "store_peak_bytes", (), "store.peak_bytes", "Most memory that it took."),
    (_GAUGE, "store_bytes", ("purpose",), "store.bytes_by_purpose", "Memory that it takes, by purpose."),
    (_GAUGE, "store_entries", ("purpose",), "store.entries_by_purpose", "Entries of the host store, by purpose."),
    (_GAUGE, "engine_threads", (), "threads", "Threads that compute now."),
    (_GAUGE, "engine_rss_bytes", (), "rss_bytes", "Resident memory of the engine process."),
    (_GAUGE, "engine_unaccounted_bytes", (), "unaccounted_bytes", "Resident memory besides weights, KV cells and host store."),
    (_COUNTER, "engine_steps", (), "step", "Steps of the engine's loop."),
    (_COUNTER, "engine_prompt_tokens", (), "prompt_tokens", "Prompt tokens computed."),
    (_COUNTER, "engine_output_tokens", (), "output_tokens", "Output tokens generated."),
    (_COUNTER, "engine_moves", (), "moves", "Sequences moved to another slot."),
    (_COUNTER, "engine_preemptions", ("kind",), "totals.preemptions", _PREEMPTIONS),
    (_COUNTER, "engine_resumes", (), "totals.resumes", "Preempted choices that went on."),
    (_COUNTER, "engine_downgrades", (), "totals.downgrades", "Choices that became background work."),
    (_COUNTER, "engine_expired", (), "totals.expired", "Choices that waited as long as they may."),
    (_COUNTER, "engine_prefix_hits", (), "totals.prefix_hits", "Prompts of which a beginning needed no computing."),
    (_COUNTER, "engine_recomputed_tokens", (), "totals.recomputed_tokens", _RECOMPUTED),
    (_COUNTER, "engine_evicted_entries", (), "totals.evicted_entries", "Entries that the host store gave up for others."),
    (_COUNTER, "engine_stored_bytes", (), "totals.stored_bytes", "Bytes carried into the host store."),
    (_COUNTER, "engine_loaded_bytes", (), "totals.loaded_bytes", "Bytes carried from the host store."),
    (_COUNTER, "engine_inherited_entries", (), "totals.inherited_entries", _INHERITED),
    (_COUNTER, "engine_unstored", (), "totals.unstored", _UNSTORED),
    (_COUNTER, "draft_tokens", ("outcome",), "totals.draft_tokens", _DRAFTS),
    (_COUNTER, "engine_step_part_seconds", ("part",), "steps.parts_us", _PARTS),
    (_HISTOGRAM, "engine_step_seconds", (), "steps.seconds", "Whole steps."),
    (_HISTOGRAM, "engine_step_decode_tokens", (), "steps.decode_tokens", "Decode tokens in a step."),
    (_HISTOGRAM, "engine_step_prompt_tokens", (), "steps.prompt_tokens", "Prompt tokens in a step."),
    (_HISTOGRAM, "engine_step_sequences", (), "steps.sequences", "Sequences in a step."),
    (_HISTOGRAM, "engine_chunk_tokens", (), "steps.chunk_tokens", "Tokens of a chunk of a prompt."),
    (_HISTOGRAM, "engine_cost_ratio", (), "steps.cost_ratio", _COST_RATIO),
    (_COUNTER, "engine_served_seconds", ("class",), "classes.served_us", "Compute that a class was served, as measured."),
    (_GAUGE, "fairness_jain", ("class",), "classes.jain", _JAIN),
    (_GAUGE, "fairness_gap_seconds", ("class",), "classes.gap_us", _GAP),
)
"""Kind, name, labels, where a Status has it, and what it is. What ends in `_us` there is told in seconds. Counters are since the
engine started: a restart sets them back to 0, as Prometheus expects of counters."""


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
        self._exported: dict[tuple[str, ...], float] = {}
        self._restarts = -1

    def describe(self) -> Iterator[Metric]:
        """Nothing: otherwise the registry would collect once to learn the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        reading = self._read_engine()
        if reading.restarts != self._restarts:
            self._exported, self._restarts = {}, reading.restarts
        yield GaugeMetricFamily("poise_engine_up", "1 while the engine takes requests, else 0.", reading.up)
        yield CounterMetricFamily("poise_engine_restarts", "Times the engine was started again.", reading.restarts)
        if (status := reading.status) is None:
            return
        for kind, name, labels, path, text in _FIGURES:
            family = kind(f"poise_{name}", text, labels=labels)
            for values, figure in _series(status, path):
                if isinstance(family, HistogramMetricFamily):
                    fill(family, values, figure)
                else:
                    family.add_metric(values, self._least(name, values, figure) if kind is _COUNTER else figure)
            yield family
        yield from _structure(status.structure)
        yield from self._bottleneck(status.bottleneck, self._now_ns())

    def _least(self, name: str, labels: list[str], value: float) -> float:
        """A counter that can be too high at first, as recomputed tokens are, which are taken back if their cells are found, does
        not go back: Prometheus would take it for a new one."""
        self._exported[name, *labels] = value = max(value, self._exported.get((name, *labels), 0.0))
        return value

    def _bottleneck(self, bottleneck: Bottleneck, now_ns: int) -> Iterator[Metric]:
        """For how long each resource was the limit, with the time that has passed since the engine said so.

        An engine that rests tells nothing, and what limits it goes on doing so. One that is busy may have gone on to something
        else just before a scrape."""
        text = (
            "Time in which progress was limited by the resource: compute, kv_cells, host_memory, tenant_limits, power, "
            "readers, none (it computed and nobody waited), idle. They add up to the engine's life."
        )
        counter = CounterMetricFamily("poise_bottleneck_seconds", text, labels=["resource"])
        text = "1 for the resource that limits progress now, else 0."
        present = GaugeMetricFamily("poise_bottleneck", text, labels=["resource"])
        for resource, limited_us in bottleneck.limited_us.items():
            is_present = resource == bottleneck.limit
            since_us = max(0, now_ns - bottleneck.since_ns) / 1000 if is_present and bottleneck.since_ns else 0.0
            counter.add_metric([resource], self._least("bottleneck", [resource], (limited_us + since_us) / 1e6))
            present.add_metric([resource], float(is_present))
        yield from (counter, present)


def _series(value: Any, path: str) -> Iterator[tuple[list[str], Any]]:
    """What lies at the end of a path of attributes, with the keys of the tables (or the names in the lists) on its way."""
    name, _, rest = path.partition(".")
    if isinstance(value, list):
        value = {item.name: item for item in value}
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from (([key, *keys], found) for keys, found in _series(inner, path))
    elif name and value is not None:
        found = _series(getattr(value, name), rest)
        yield from ((keys, figure / 1e6) for keys, figure in found) if name.endswith("_us") else found
    elif value is not None:
        yield [], value


def _structure(figures: StructureFigures) -> Iterator[Metric]:
    text = "Time that forms of answers took: building them, beside the steps; and masks, where a draw did not fit."
    seconds = CounterMetricFamily("poise_structured_seconds", text, labels=["part"])
    seconds.add_metric(["build"], figures.build_us / 1e6)
    seconds.add_metric(["mask"], figures.mask_us / 1e6)
    text = "Tokens of answers with a form that were drawn again, and that needed no draw."
    tokens = CounterMetricFamily("poise_structured_tokens", text, labels=["how"])
    tokens.add_metric(["redrawn"], figures.redraws)
    tokens.add_metric(["forced"], figures.forced)
    yield from (seconds, tokens)
