"""Shapes in which metrics are declared: each is made with all of its series, and what is returned is how it is written."""

from collections.abc import Callable, Iterable
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge


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
