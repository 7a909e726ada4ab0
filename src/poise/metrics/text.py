"""What is counted of the text workers, as /metrics shows it. It counts from before there is an application."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Gauge, Histogram

from poise.metrics.shapes import counted

OUTCOMES = ("done", "gone", "rejected", "unavailable")
DEATHS = ("crash", "timeout", "gone", "exit")
_TIMES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class TextMetrics:
    """Of one gateway. Every series exists from the start."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        times = partial(Histogram, buckets=_TIMES_S, registry=registry)
        self.began = times("poise_text_wait_seconds", "What a text waited for a worker.").observe
        text = "What a worker took for a text, from handing it over to the answer."
        self.worked = times("poise_text_work_seconds", text).observe
        text = (
            "Texts that were given to the text workers: done, gone (its client left), rejected (it ended workers, or took too "
            "long), unavailable (there was no room, or no worker in time)."
        )
        self.ended = counted(registry, "poise_text_jobs_total", text, outcome=OUTCOMES)
        text = (
            "Text workers that ended: crash (a signal, with a text), timeout (killed, a text took too long), gone (killed, its "
            "client had left and others waited), exit (without a text)."
        )
        self.died = counted(registry, "poise_text_worker_deaths_total", text, cause=DEATHS)
        self._ready = Gauge("poise_text_workers", "Text workers that are ready.", registry=registry)
        self._queued = Gauge("poise_text_queue", "Texts that wait for a worker.", registry=registry)

    def watch(self, n_ready: Callable[[], int], n_queued: Callable[[], int]) -> None:
        """Where the levels are read at a scrape."""
        self._ready.set_function(n_ready)
        self._queued.set_function(n_queued)
