"""What is counted from before there is an application: lost engines and what was done about them, the server's level, text
workers, and the gateway's long-lived tasks. Each has a registry of its own, which the gateway's registry contains."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from poise.metrics.shapes import ClassCounter, ClassHistogram, counted

CAUSES = ("crash", "hang", "exit")
LEVELS = ("normal", "busy", "constrained", "degraded", "draining")

_RECOVERY_S = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 30.0, 60.0, 120.0)


class RecoveryMetrics:
    """Of one gateway. Every series exists from the start."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        text = "From the loss of an engine to the next token of a choice that it had begun."
        self.going_on = ClassHistogram(registry, "poise_recovery_seconds", text, _RECOVERY_S).observe
        """The first token after a recovery."""
        text = "From the loss of an engine until another one was ready."
        down = Histogram("poise_engine_down_seconds", text, buckets=_RECOVERY_S, registry=registry)
        self.ready_again = down.observe
        text = "Choices that were handed to another engine and taken up by it."
        self._recovered = ClassCounter(registry, "poise_recovered_requests", text)
        text = "Tokens of recovered choices that had to be computed again."
        self._recomputed = ClassCounter(registry, "poise_recovered_tokens", text)
        text = "Choices that were ended because engines died computing them."
        self.quarantined = ClassCounter(registry, "poise_quarantined", text).add
        text = "Engines that were lost: crash (a signal), hang (the watchdog), exit."
        self.lost = counted(registry, "poise_engine_losses_total", text, cause=CAUSES)
        self._level = Gauge("poise_level", "1 for the server's present level, else 0.", ("level",), registry=registry)
        for level in LEVELS:
            self._level.labels(level).set(level == LEVELS[0])
        text = "Times that the server came to a level."
        self._reached = counted(registry, "poise_level_transitions_total", text, level=LEVELS)

    def recovered(self, request_class: str, n_recomputed: int) -> None:
        self._recovered.add(request_class)
        self._recomputed.add(request_class, n_recomputed)

    def came_to(self, level: str, former: str) -> None:
        self._level.labels(former).set(0)
        self._level.labels(level).set(1)
        self._reached(level)


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


class TaskMetrics:
    """Of one gateway. Names of tasks are the program's own, so the label is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        text = "Exceptions in the gateway's long-lived tasks; each task goes on after a while."
        self._failures = Counter("poise_task_failures_total", text, ("task",), registry=self.registry)

    def known(self, task: str) -> None:
        """Its series exists from the start."""
        self._failures.labels(task)

    def failed(self, task: str) -> None:
        """May be called from any thread."""
        self._failures.labels(task).inc()
