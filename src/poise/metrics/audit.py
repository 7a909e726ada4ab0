"""What is counted of the audit log's writer: whether the disk keeps up with it, and what was lost."""

import threading
from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram

from poise.metrics.shapes import read

PARTS = ("write", "sync")
_DISK_S = (0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Standing(NamedTuple):
    """How the log's files stand: their bytes and how many they may have, how many files went before their days were over, and
    whether the clock is days ahead of the log."""

    n_bytes: int = 0
    bytes_max: int = 0
    n_early: int = 0
    jumped: bool = False


class AuditMetrics:
    """Of one gateway. Without an audit log every figure stays 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "What the audit log's writer did with the disk at one time: write (the entries that had come) or sync."
        self._disk = Histogram("poise_audit_disk_seconds", text, ("part",), buckets=_DISK_S, registry=registry)
        for part in PARTS:
            self._disk.labels(part)
        text = "Entries of the audit log that could not be written, or found its queue full."
        self._lost = Counter("poise_audit_lost_total", text, registry=registry)
        self._lock = threading.Lock()
        """The log's writer tells in its own thread, whoever finds the queue full in another."""
        self.n_lost = 0
        self._worst_s = 0.0
        self.on_failure: Callable[[BaseException], object] = lambda _: None
        """Is called for errors that the writer did not foresee."""
        self.n_queued: Callable[[], int] = lambda: 0
        self.busy_s: Callable[[], float] = lambda: 0.0
        """How the log that there is can be asked for them."""
        text = "Entries that wait for the audit log's writer."
        read(registry, "poise_audit_queue", text, lambda: self.n_queued())
        text = "For how long the disk has kept the audit log's writer with the work at hand."
        read(registry, "poise_audit_disk_busy_seconds", text, lambda: self.busy_s())
        self.standing: Callable[[], Standing] = Standing
        """How the files of the log that there is can be asked for."""
        text = "Bytes of all files of the audit log."
        read(registry, "poise_audit_bytes", text, lambda: self.standing().n_bytes)
        text = "Files of the audit log, since the start, that went before audit.keep_days since audit.max_mb was reached."
        read(registry, "poise_audit_files_deleted_early", text, lambda: self.standing().n_early)
        text = "Requests that were refused since nobody knows their key."
        self.refused_stranger = Counter("poise_unknown_callers_total", text, registry=registry).inc

    def worked(self, part: str, seconds: float) -> None:
        """May be called from any thread."""
        self._disk.labels(part).observe(seconds)
        with self._lock:
            self._worst_s = max(self._worst_s, seconds)

    def take_worst_s(self) -> float:
        """The longest piece of work that ended since this was last asked."""
        with self._lock:
            worst_s, self._worst_s = self._worst_s, 0.0
        return worst_s

    def failed(self, error: BaseException) -> None:
        """May be called from any thread."""
        self.on_failure(error)

    def lost(self, n_entries: int) -> None:
        """May be called from any thread."""
        self._lost.inc(n_entries)
        with self._lock:
            self.n_lost += n_entries
