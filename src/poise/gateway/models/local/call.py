"""The books of one admitted request: when its job starts its record is kept as a live one, and its end is counted and logged."""

from __future__ import annotations

from poise.gateway.models.backend import Job
from poise.gateway.records.following import Stage
from poise.gateway.records.kept import Records
from poise.gateway.records.record import Record
from poise.gateway.tenancy.auditing import RequestEntry
from poise.metrics.gateway import GatewayMetrics


class Call:
    """A request that was let in, with its job and its record."""

    def __init__(self, record: Record, job: Job, metrics: GatewayMetrics, records: Records) -> None:
        self.record = record
        self.is_late = job.is_late
        self.notes = job.headers
        """What the response is to say of how its prompt was made: header to value."""
        self._job: Job | None = job
        """Until it starts."""
        self._metrics = metrics
        self._records = records
        self.entry: RequestEntry | None = None
        """What is put on record of it at its end."""

    def start(self) -> None:
        """Begin. Whoever follows the record hears what comes of it."""
        assert self._job is not None, "it has started"
        job, self._job = self._job, None
        self.record.on_end = self._ended
        self._records.add(self.record)
        job.start(self.record)

    def _ended(self, record: Record) -> None:
        """Nobody comes back for a request that was refused, unless its client has been told an id."""
        refused = record.stage is Stage.REFUSED
        if refused and record.failure is not None:
            tenant = None if record.erased else record.origin.tenant
            self._metrics.rejected(record.origin.request_class, record.failure.code, tenant)
        entry, self.entry = self.entry, None
        if entry is not None:
            entry.ended(record)
        self._records.finish(record, keep=not refused or self.is_late)
