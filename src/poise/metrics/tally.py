"""Histograms and counters by class for what happens with every token: a list entry each, made into metrics at a scrape.

prometheus_client's own take a lock for each bucket and for the sum. That is little, but it is paid for each token, with caches
that the engine's threads have just emptied. These are written and read in one event loop and need none."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from poise.scheduler.request import RequestClass


class ClassCounter:
    """A counter with one series for each class: they exist, at 0, before the first request."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._totals = {request_class.value: 0 for request_class in RequestClass}
        registry.register(self)

    def add(self, request_class: str, amount: int = 1) -> None:
        self._totals[request_class] += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=["class"])
        for request_class, total in self._totals.items():
            family.add_metric([request_class], total)
        yield family


class ClassHistogram:
    """A histogram with one series for each class. `bounds` are the upper ends of its buckets, ascending, without infinity."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = {request_class.value: [0] * (len(bounds) + 1) for request_class in RequestClass}
        self._sums = {request_class.value: 0.0 for request_class in RequestClass}
        registry.register(self)

    def observe(self, request_class: str, value: float) -> None:
        self._counts[request_class][bisect_left(self._bounds, value)] += 1
        self._sums[request_class] += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=["class"])
        names = [*map(str, self._bounds), "+Inf"]
        for request_class, counts in self._counts.items():
            buckets = list(zip(names, accumulate(counts), strict=True))
            family.add_metric([request_class], buckets, self._sums[request_class])
        yield family
