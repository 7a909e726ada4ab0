"""Shapes in which metrics are declared: each is made with all of its series.

What happens with every token is a list entry, made into a metric at a scrape (ClassCounter, ClassHistogram). prometheus_client's
own take a lock for each bucket and for the sum. That is little, but it is paid for each token, with caches that the engine's
threads have just emptied. These are written and read in one event loop and need none."""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, product

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from poise.engine.figures import Tally
from poise.scheduler.request import RequestClass
from poise.wire.figures import Distribution


def counted(registry: CollectorRegistry, name: str, text: str, **labels: Iterable[str]) -> Callable[..., None]:
    """A counter with these labels. What is returned adds 1 to the series of the values that it is called with, from any thread.

    `labels` has the values that are known: their series exist from the start."""
    counter = Counter(name, text, tuple(name.rstrip("_") for name in labels), registry=registry)
    for known in product(*labels.values()):
        counter.labels(*known)

    def count(*values: str) -> None:
        counter.labels(*values).inc()

    return count


def read(registry: CollectorRegistry, name: str, text: str, level: Callable[[], float]) -> None:
    """A gauge that is asked for at a scrape."""
    Gauge(name, text, registry=registry).set_function(level)


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
        self._name, self._text = name, text
        self._tallies = {request_class.value: Tally(bounds) for request_class in RequestClass}
        registry.register(self)

    def observe(self, request_class: str, value: float) -> None:
        self._tallies[request_class].add(value)

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=["class"])
        for request_class, tally in self._tallies.items():
            fill(family, [request_class], tally.distribution())
        yield family


def fill(family: HistogramMetricFamily, labels: list[str], found: Distribution) -> None:
    """Give a family the series with these values of its labels."""
    names = [*map(str, found.bounds), "+Inf"]
    family.add_metric(labels, list(zip(names, accumulate(found.counts), strict=True)), found.total)
