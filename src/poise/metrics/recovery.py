"""What is counted of lost engines, of what was done about them, and of the server's level, as /metrics shows it.

It has a registry of its own, because it counts from before there is an application; the gateway's registry contains it."""

from prometheus_client import CollectorRegistry, Gauge, Histogram

from poise.metrics.shapes import counted
from poise.metrics.tally import ClassCounter, ClassHistogram

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
