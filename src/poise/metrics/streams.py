"""What the gateway counts of its readers and records: at which pace tokens are delivered, who is behind, what is kept."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge

from poise.metrics.shapes import counted, read
from poise.metrics.tally import ClassCounter, ClassHistogram
from poise.scheduler.request import Hold, RequestClass

GAPS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
_CANCELS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class StreamMetrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        text = "Between two events with text of one choice in a stream."
        self.delivered = ClassHistogram(registry, "poise_delivery_gap_seconds", text, GAPS_S).observe
        text = "From taking a choice back from the engine to the engine's word that its slot and cells are free."
        self.freed: Callable[[str, float], None]
        self.freed = ClassHistogram(registry, "poise_cancel_seconds", text, _CANCELS_S).observe
        text = "Streams whose client took nothing for as long as it may."
        self._timeouts = ClassCounter(registry, "poise_reader_timeouts", text)
        self.reattached = ClassCounter(registry, "poise_reattachments", "Streams that were taken up again.").add
        text = "Times that requests were held because all their readers were behind (pause, swap), or let run again (run)."
        self.held = counted(registry, "poise_holds_total", text, class_=RequestClass, level=Hold)
        self.n_stalled = 0
        """Streams that wait for their client."""
        self.n_timed_out = 0
        """Streams that were closed because their client took nothing."""
        read(registry, "poise_readers_stalled", "Streams that wait for their client.", lambda: self.n_stalled)

    def timed_out(self, request_class: str) -> None:
        self._timeouts.add(request_class)
        self.n_timed_out += 1

    def watch_records(self, count: Callable[[], tuple[int, int]], n_bytes: Callable[[], int]) -> None:
        """Where to ask for the records that are kept: live and finished, and the memory that they take."""
        records = Gauge("poise_records", "Responses that are kept, by state.", ("state",), registry=self._registry)
        records.labels("live").set_function(lambda: count()[0])
        records.labels("finished").set_function(lambda: count()[1])
        read(self._registry, "poise_record_bytes", "Memory that the kept responses take.", n_bytes)
