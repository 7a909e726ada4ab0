"""The audit log's writer: a thread of its own, with a bounded queue before it, so that nothing ever waits for the disk.

**When a line is where.** The writer hands a line to the system as soon as it comes: it outlives the server's death, also by
kill -9. Once a second, and when the server stops, lines are forced to the disk (fsync) and the head file is brought up to date: a
power failure can cost the last second, and lines of the last second can be cut off without a trace. What is in the queue when
the server is killed is lost; the queue is empty unless the disk is slower than the requests.

**When it is too much.** Entries that find the queue full, or that cannot be written, are counted, and the count is an entry
(`lost`) as soon as one can be written again. Requests go on: a full disk is no reason to stop serving. What operators do has
places in the queue and room on the disk of its own (`audit.files`). All files together have a bound of bytes: the oldest go."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from poise.audit.chain import ChainError
from poise.audit.writer import Writer

log = logging.getLogger(__name__)

QUEUE_MAX = 10_000
BYTES_MAX = 1 << 30
ORDINARY = ("request", "egress", "egress_end", "unknown_callers", "lost")
"""Events that anybody can cause. All others, as what operators do, have room of their own on a full disk and in a full queue."""
QUEUE_KEPT = 1_000
"""Places of the queue beyond the ones that ordinary entries may take."""
CONTENT_BYTES_MAX = 64 << 20
"""Characters of prompts and answers that may be in the queue; as much again may be on its way to the disk."""
SYNC_EVERY_S = 1.0
PAUSE_AFTER_FAILURE_S = 0.1


class AuditError(Exception):
    """The log cannot be written; the message is one line."""


class Watch(Protocol):
    """Is called with how the writer keeps up. From any thread."""

    def worked(self, part: str, seconds: float) -> None:
        """The disk took so long for a piece of work: `write` (the entries that had come) or `sync`."""

    def lost(self, n_entries: int) -> None: ...

    def failed(self, error: BaseException) -> None:
        """The writer came upon something that it did not foresee, and goes on."""


class _Entry(NamedTuple):
    time: datetime
    fields: Mapping[str, Any]
    content: Mapping[str, Any] | None
    done: Future[None] | None = None
    """Who waits for it to be with the system."""


class _Erasure(NamedTuple):
    tenant: str
    done: Future[int]


class AuditLog:
    """Append-only. `put` may be called from any thread and returns at once; `close` writes what is left."""

    def __init__(
        self,
        folder: Path,
        key: bytes,
        *,
        rotate_bytes: int,
        keep_days: int,
        bytes_max: int = BYTES_MAX,
        queue_max: int = QUEUE_MAX,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Goes on where the log ends. Raises AuditError when the folder cannot be used."""
        self._now, self._queue_max, self._bytes_max = now, queue_max, bytes_max
        self._queue: deque[_Entry | _Erasure] = deque()
        self._content_bytes = 0
        """Of what is in the queue."""
        self.watch: Watch | None = None
        self._began_s: float | None = None
        """Since when the writer is at the work at hand."""
        self._n_lost = 0
        """That no entry tells of yet."""
        self._wake = threading.Condition()
        self._closing = self._closed = False
        """Whether it is to end, and whether it begins no other round."""
        self._synced_s = 0.0
        self._broken = False
        try:
            self._writer = Writer(folder, key, rotate_bytes, timedelta(days=keep_days), bytes_max)
            self._writer.open(now().date())
        except (OSError, ChainError) as error:
            raise AuditError(f"the audit log in {folder} cannot be used: {error}") from error
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    @property
    def n_queued(self) -> int:
        """Entries that wait for the writer."""
        return len(self._queue)

    @property
    def busy_s(self) -> float:
        """For how long the disk has kept the writer with the work at hand; 0: it waits for nothing."""
        began_s = self._began_s
        return 0.0 if began_s is None else time.monotonic() - began_s

    @property
    def standing(self) -> tuple[int, int, int, bool]:
        """Bytes of all files, and how many they may have; files that went early; whether the clock is days ahead."""
        writer = self._writer
        return writer.n_bytes, self._bytes_max, writer.n_early, writer.jumped

    def put(
        self, event: str, fields: Mapping[str, Any], content: Mapping[str, Any] | None = None, done: Future[None] | None = None
    ) -> None:
        """One entry. Never waits: with a full queue, or content for which there is no room in it, it is counted as lost."""
        entry = _Entry(self._now(), {"event": event, **fields}, content, done)
        n_bytes = _n_characters(content)
        with self._wake:
            room = self._queue_max + (0 if event in ORDINARY else QUEUE_KEPT)
            too_much = n_bytes > 0 and self._content_bytes + n_bytes > CONTENT_BYTES_MAX
            if len(self._queue) >= room or too_much or self._closing:
                self._n_lost += 1
                if self.watch is not None:
                    self.watch.lost(1)
                _tell(entry, is_written=False)
                return
            self._queue.append(entry)
            self._content_bytes += n_bytes
            self._wake.notify()

    def written(self, event: str, fields: Mapping[str, Any]) -> Future[None]:
        """One entry, for somebody who goes on when it is with the system and not before. AuditError: it is not, and is lost."""
        done: Future[None] = Future()
        self.put(event, fields, done=done)
        return done

    def erase_content(self, tenant: str) -> Future[int]:
        """Erase what the log holds of a tenant's prompts and answers; the result is the number of entries that lost theirs."""
        done: Future[int] = Future()
        with self._wake:
            self._queue.append(_Erasure(tenant, done))
            self._wake.notify()
        return done

    def close(self) -> None:
        """Write what is left, and end."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        """Round after round until it is closed. A round that fails must not be the last one: nobody would notice."""
        self._synced_s = time.monotonic()
        while not self._closed:
            try:
                self._round()
            except Exception as error:
                if self.watch is not None:
                    self.watch.failed(error)
                else:
                    log.exception("the audit log's writer failed; it goes on")
                time.sleep(PAUSE_AFTER_FAILURE_S)

    def _round(self) -> None:
        """Write what has come, and force it to the disk when it is time."""
        with self._wake:
            pause_s = max(0.0, self._synced_s + SYNC_EVERY_S - time.monotonic()) if self._writer.dirty else None
            if not self._queue and not self._closing:
                self._wake.wait(pause_s)
            work, n_lost = list(self._queue), self._n_lost
            # Whatever happens in between: after a round that was to be the last one there is no other.
            self._closed = self._closing
            self._queue.clear()
            self._n_lost = self._content_bytes = 0
        n_lost += self._carry_out(work) if work else 0
        if n_lost and not self._write(_Entry(self._now(), {"event": "lost", "entries": n_lost}, None)):
            with self._wake:
                self._n_lost += n_lost
        if self._closed or time.monotonic() - self._synced_s >= SYNC_EVERY_S:
            with self._timed("sync"):
                self._guarded(self._writer.sync)
            self._synced_s = time.monotonic()
        if self._closed:
            self._writer.close()

    def _carry_out(self, work: Sequence[_Entry | _Erasure]) -> int:
        """Returns how many entries could not be written."""
        n_failed = 0
        with self._timed("write"):
            for item in work:
                if isinstance(item, _Erasure):
                    self._erase(item)
                elif not self._write(item):
                    n_failed += 1
        if n_failed and self.watch is not None:
            self.watch.lost(n_failed)
        return n_failed

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        self._began_s = began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = None
            if self.watch is not None:
                self.watch.worked(part, time.monotonic() - began_s)

    def _write(self, entry: _Entry) -> bool:
        is_kept = entry.fields["event"] not in ORDINARY
        is_written = self._guarded(lambda: self._writer.write(entry.time, entry.fields, entry.content, is_kept=is_kept))
        _tell(entry, is_written=is_written)
        return is_written

    def _erase(self, erasure: _Erasure) -> None:
        try:
            erasure.done.set_result(self._writer.erase_content(erasure.tenant))
        except Exception as error:
            erasure.done.set_exception(AuditError(f"the audit log cannot be changed: {error}"))

    def _guarded(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:
            if not self._broken:
                log.error("the audit log cannot be written: %s; entries are counted as lost", _why(error))
            if self.watch is not None and not isinstance(error, OSError):
                self.watch.failed(error)
            self._broken = True
            return False
        self._broken = False
        return True


def _tell(entry: _Entry, *, is_written: bool) -> None:
    """Whoever waits for an entry, unless they gave up."""
    if entry.done is None or not entry.done.set_running_or_notify_cancel():
        return
    if is_written:
        entry.done.set_result(None)
    else:
        entry.done.set_exception(AuditError("the audit log cannot be written"))


def _why(error: Exception) -> str:
    """An error of the system in its words; another's kind only, as its words could quote an entry."""
    return error.strerror or str(error) if isinstance(error, OSError) else type(error).__name__


def _n_characters(content: object) -> int:
    """Of all texts in a JSON-like value, and some for each part of it."""
    n, left = 0, [content]
    while left:
        part = left.pop()
        if isinstance(part, str):
            n += len(part)
        elif isinstance(part, Mapping):
            left += part.values()
        elif isinstance(part, list):
            left += part
        n += 8 if part is not None else 0
    return n
