"""The files of the audit log, as their one writer sees them: where the chain goes on, when a new file begins, which files go."""

import errno
import fcntl
import logging
import os
from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from poise.audit.chain import START, ChainError, Head, Link, encode_line, parse, without_content
from poise.audit.files import HEAD_NAME, LogFile, Reserve, file_path, has_jumped, log_files, out_of_date, replace_file, too_many

log = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)


class Writer:
    """The files, used by one thread."""

    def __init__(self, folder: Path, key: bytes, rotate_bytes: int, keep: timedelta, bytes_max: int) -> None:
        self._folder, self._key = folder, key
        self._rotate_bytes, self._keep, self._bytes_max = rotate_bytes, keep, bytes_max
        self._reserve = Reserve(folder)
        self._before_first = self._at = START
        self._file: int | None = None
        self._lock: int | None = None
        """The folder, locked: two chains cannot be one."""
        self._day = date.min
        self._size = 0
        self.dirty = False
        self.n_bytes = 0
        """Of all files."""
        self.n_early = 0
        """Files that went before their days were over, since the bound of bytes was reached."""
        self.jumped = False
        """The clock is days ahead of the log: nothing goes by days until the log has been written on more of them."""

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
        self._count()
        self._write_head()
        self._reserve.hold()

    def write(
        self, time: datetime, fields: Mapping[str, Any], content: Mapping[str, Any] | None, *, is_kept: bool = False
    ) -> None:
        """Append one line. When that fails, nothing of it is left. `is_kept`: on a full disk it has room that others have not."""
        if not self._reserve.hold() and not is_kept:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            self._append(time, fields, content)
        except OSError as error:
            if error.errno not in FULL or not is_kept or not self._reserve.give_up():
                raise
            self._append(time, fields, content)

    def _append(self, time: datetime, fields: Mapping[str, Any], content: Mapping[str, Any] | None) -> None:
        if self._file is None or self._is_another(time.date()) or self._size >= self._rotate_bytes:
            self._rotate(time.date())
        assert self._file is not None
        entry = {**fields, "time": time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        line, link = encode_line(self._at, entry, self._key, content)
        data = line + b"\n"
        self.dirty = True
        try:
            written = os.write(self._file, data)
            if written < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        self.n_bytes += len(data)
        self._at = link
        if self.n_bytes > self._bytes_max:
            self._shrink()

    def _is_another(self, day: date) -> bool:
        """A clock that was put right begins a file, too. At midnight entries overtake each other: a day is not gone back."""
        return day > self._day or day < self._day - timedelta(days=1)

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
        self._count()
        return n_erased

    def _rotate(self, day: date) -> None:
        self.sync()
        self._close_file()
        if day != self._day:
            self._prune(day)
        path = file_path(self._folder, day, self._at.seq + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)
        self._day, self._size = day, os.fstat(self._file).st_size
        self._count()

    def _reopen_last(self) -> None:
        files = log_files(self._folder)
        if files:
            self._file = os.open(files[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            self._day, self._size = files[-1].day, os.fstat(self._file).st_size

    def _mend_end(self) -> None:
        """Take up what was written after the head file, and cut off half a line that a power failure left.

        Where the log is shorter than the head says, it goes on after what is missing, so that the gap stays visible."""
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
        """Delete files of days that are no longer kept."""
        files = log_files(self._folder)
        jumped = has_jumped([file.day for file in files], today)
        if jumped and not self.jumped:
            goes_on = "nothing of it is deleted by days until it has been written on some more of them"
            log.error("the clock says %s, days after the audit log's last entry: %s", today, goes_on)
        self.jumped = jumped
        for file in out_of_date(files, self._keep, today):
            self._delete(file)

    def _shrink(self) -> None:
        """Delete the oldest files, as many as must go."""
        files = log_files(self._folder)
        for file in too_many(files, [file.path.stat().st_size for file in files], self._bytes_max):
            log.error("the audit log is full (audit.max_mb): %s goes before its time", file.path.name)
            self._delete(file)
            self.n_early += 1
        self._count()

    def _delete(self, file: LogFile) -> None:
        """The head file first, so that what is missing is known to be."""
        lines = file.path.read_bytes().splitlines()
        last = _link(lines[-1]) if lines else None
        if last is not None and last.seq > self._before_first.seq:
            self._before_first = last
            self._write_head()
        with file.path.open("r+b") as old:
            file.path.unlink()
            _overwrite(old)

    def _count(self) -> None:
        self.n_bytes = sum(file.path.stat().st_size for file in log_files(self._folder))

    def _write_head(self) -> None:
        replace_file(self._folder / HEAD_NAME, Head(self._before_first, self._at).encode(self._key))


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
