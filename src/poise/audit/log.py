"""The audit log's writer: a thread of its own, with a bounded queue before it, so that nothing ever waits for the disk.

**When a line is where.** The writer hands a line to the system as soon as it comes: it outlives the server's death, also by
kill -9. Once a second, and when the server stops, lines are forced to the disk (fsync) and the head file is brought up to date: a
power failure can cost the last second, and lines of the last second can be cut off without a trace. What is in the queue when
the server is killed is lost; the queue is empty unless the disk is slower than the requests.

**When it is too much.** Entries that find the queue full, or that cannot be written, are counted, and the count is an entry
(`lost`) as soon as one can be written again. Requests go on: a full disk is no reason to stop serving.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from poise.audit.chain import START, ChainError, Head, Link, encode_line, parse, without_content
from poise.audit.files import HEAD_NAME, file_path, log_files, replace_file

log = logging.getLogger(__name__)

QUEUE_MAX = 10_000
SYNC_EVERY_S = 1.0
PAUSE_AFTER_FAILURE_S = 0.1


class AuditError(Exception):
    """The log cannot be written; the message is one line."""


class Watch(Protocol):
    """Who is told how the writer keeps up. From any thread."""

    def worked(self, part: str, seconds: float) -> None:
        """The disk took so long for a piece of work: `write` (the entries that had come) or `sync`."""
        ...

    def lost(self, n_entries: int) -> None: ...

    def failed(self, error: BaseException) -> None:
        """The writer came upon something that it did not foresee, and goes on."""
        ...


class _Entry(NamedTuple):
    time: datetime
    fields: Mapping[str, Any]
    content: Mapping[str, Any] | None


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
        queue_max: int = QUEUE_MAX,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Goes on where the log ends. Raises AuditError when the folder cannot be used."""
        self._now = now
        self._queue: deque[_Entry | _Erasure] = deque()
        self._queue_max = queue_max
        self.watch: Watch | None = None
        self._began_s: float | None = None
        """Since when the writer is at the work at hand."""
        self._n_lost = 0
        """That no entry tells of yet."""
        self._wake = threading.Condition()
        self._closing = self._closed = False
        """Whether it was told to end, and whether it begins no other round."""
        self._synced_s = 0.0
        self._broken = False
        try:
            self._writer = _Writer(folder, key, rotate_bytes, timedelta(days=keep_days))
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

    def put(self, event: str, fields: Mapping[str, Any], content: Mapping[str, Any] | None = None) -> None:
        """One entry. Never waits: with a full queue it is counted as lost."""
        entry = _Entry(self._now(), {"event": event, **fields}, content)
        with self._wake:
            if len(self._queue) >= self._queue_max or self._closing:
                self._n_lost += 1
                if self.watch is not None:
                    self.watch.lost(1)
                return
            self._queue.append(entry)
            self._wake.notify()

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
            # Whatever happens in between: after a round that was told to be the last one there is no other.
            self._closed = self._closing
            self._queue.clear()
            self._n_lost = 0
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
        return self._guarded(lambda: self._writer.write(entry.time, entry.fields, entry.content))

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


class _Writer:
    """The files, used by one thread."""

    def __init__(self, folder: Path, key: bytes, rotate_bytes: int, keep: timedelta) -> None:
        self._folder = folder
        self._key = key
        self._rotate_bytes = rotate_bytes
        self._keep = keep
        self._before_first = START
        self._at = START
        self._file: int | None = None
        self._lock: int | None = None
        """The folder, locked: two chains cannot be one."""
        self._day = date.min
        self._size = 0
        self.dirty = False

    def open(self, today: date) -> None:
        """Find the end of the chain. Raises OSError, or ChainError when the head file is not ours."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ChainError("another server writes it; set audit.path") from None
        head_path = self._folder / HEAD_NAME
        if head_path.exists():
            head = Head.decode(head_path.read_bytes(), self._key)
            self._before_first, self._at = head.first, head.last
        elif log_files(self._folder):
            raise ChainError(f"{head_path} is missing; move the folder away to begin a new log")
        self._mend_end()
        self._prune(today)
        self._write_head()

    def write(self, time: datetime, fields: Mapping[str, Any], content: Mapping[str, Any] | None) -> None:
        """Append one line. When that fails, nothing of it is left."""
        if self._file is None or time.date() > self._day or self._size >= self._rotate_bytes:
            self._rotate(max(time.date(), self._day))
        assert self._file is not None
        entry = {**fields, "time": time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        line, link = encode_line(self._at, entry, self._key, content)
        data = line + b"\n"
        self.dirty = True
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(28, "no space left on device")
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        self._at = link

    def sync(self) -> None:
        if self._file is not None and self.dirty:
            os.fsync(self._file)
            self._write_head()
        self.dirty = False

    def close(self) -> None:
        self._close_file()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def erase_content(self, tenant: str) -> int:
        """Rewrite each file that holds content of the tenant."""
        self._close_file()
        n_erased = 0
        for file in log_files(self._folder):
            lines = file.path.read_bytes().splitlines(keepends=True)
            erased = [_erased(line, tenant) for line in lines]
            changed = sum(a != b for a, b in zip(lines, erased, strict=True))
            if changed:
                with file.path.open("r+b") as old:
                    replace_file(file.path, b"".join(erased))
                    _overwrite(old)
                n_erased += changed
        self._reopen_last()
        return n_erased

    def _rotate(self, day: date) -> None:
        self.sync()
        self._close_file()
        if day > self._day:
            self._prune(day)
        path = file_path(self._folder, day, self._at.seq + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._day, self._size = day, os.fstat(self._file).st_size

    def _reopen_last(self) -> None:
        files = log_files(self._folder)
        if files:
            self._file = os.open(files[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._day, self._size = files[-1].day, os.fstat(self._file).st_size

    def _mend_end(self) -> None:
        """Take up what was written after the head file, and cut off half a line that a power failure left.

        Where the log is shorter than the head says, it goes on after what is missing, so that the gap stays visible.
        """
        files = log_files(self._folder)
        if not files:
            return
        data = files[-1].path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = data[:whole].splitlines()
        last = Link(files[-1].first_seq - 1, "") if not lines else _link(lines[-1])
        if last is not None and last.seq >= self._at.seq:
            if whole < len(data):
                with files[-1].path.open("r+b") as file:
                    file.truncate(whole)
            if last.seq > self._at.seq:
                self._at = last

    def _prune(self, today: date) -> None:
        """Delete files of days that are no longer kept; the head file first, so that what is missing is known to be."""
        for file in takewhile(lambda file: file.day + self._keep < today, log_files(self._folder)):
            lines = file.path.read_bytes().splitlines()
            last = _link(lines[-1]) if lines else None
            if last is not None and last.seq > self._before_first.seq:
                self._before_first = last
                self._write_head()
            with file.path.open("r+b") as old:
                file.path.unlink()
                _overwrite(old)

    def _write_head(self) -> None:
        replace_file(self._folder / HEAD_NAME, Head(self._before_first, self._at).encode(self._key))


def _why(error: Exception) -> str:
    """An error of the system in its words; another's kind only, as its words could quote an entry."""
    return error.strerror or str(error) if isinstance(error, OSError) else type(error).__name__


def _link(line: bytes) -> Link | None:
    try:
        entry = parse(line)
        return Link(int(entry["seq"]), str(entry["hash"]))
    except (ChainError, KeyError, ValueError):
        return None


def _erased(line: bytes, tenant: str) -> bytes:
    if b'"content":' not in line or not line.endswith(b"\n"):
        return line
    entry = parse(line[:-1])
    return without_content(line[:-1]) + b"\n" if entry.get("tenant") == tenant and "content" in entry else line


def _overwrite(file: BinaryIO) -> None:
    """Zeros over a file that has lost its name. What the file system or the disk keeps of its own is out of reach."""
    left = os.fstat(file.fileno()).st_size
    file.seek(0)
    while left > 0:
        left -= file.write(bytes(min(left, 1 << 20)))
    file.flush()
    os.fsync(file.fileno())
