"""The audit log's files: one folder, one file a day at least, named by day and first line, the head file, and a reserve.

audit-20261124-000000000001.jsonl
head.json
reserve

Which files go: those of days that are no longer kept, and the oldest when all together are too large. **Days are counted by the
log, not by the clock.** A clock that is wrong for a moment must not delete everything. The day that files are judged by follows
the days of the files: at most one day at a time, or, after a longer step, only once the log has been written on `CONFIRM_DAYS`
different days beyond it. So a server that was off for a month deletes a few days later than it might."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import accumulate, takewhile
from pathlib import Path

HEAD_NAME = "head.json"
_NAME = re.compile(r"audit-(\d{8})-(\d{12})\.jsonl")
RESERVE_NAME = "reserve"
RESERVE_BYTES = 1 << 20
"""Some two thousand entries."""
RETRY_S = 1.0
CONFIRM_DAYS = 3
STEP_MAX = timedelta(days=31)
"""Between two of these days at most: another jump confirms nothing."""
_ONE_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True, order=True)
class LogFile:
    """`first_seq` is the number of its first line, `day` that line's day."""

    first_seq: int
    day: date
    path: Path


def file_path(folder: Path, day: date, first_seq: int) -> Path:
    return folder / f"audit-{day:%Y%m%d}-{first_seq:012d}.jsonl"


def log_files(folder: Path) -> list[LogFile]:
    """In the order of the chain."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            try:
                day = datetime.strptime(match[1], "%Y%m%d").date()
            except ValueError:
                continue
            found.append(LogFile(int(match[2]), day, path))
    return sorted(found)


def replace_file(path: Path, data: bytes) -> None:
    """Whole or not at all, for this user only, and on disk when this returns."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # also of a draft that was left
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def trusted_day(days: Sequence[date], today: date) -> date:
    """The day that the log's own days, in the order of its chain, and the clock's agree on."""
    trusted = days[0] if days else today
    beyond: list[date] = []
    for day in [*days, today]:
        if day <= trusted + _ONE_DAY:
            trusted, beyond = max(trusted, day), []
        elif not beyond or day < beyond[-1] or day > beyond[-1] + STEP_MAX:
            beyond = [day]
        elif day > beyond[-1]:
            beyond.append(day)
        while len(beyond) >= CONFIRM_DAYS:
            trusted = beyond.pop(0)
            while beyond and beyond[0] <= trusted + _ONE_DAY:
                trusted = beyond.pop(0)
    return min(trusted, today)


def has_jumped(days: Sequence[date], today: date) -> bool:
    """Whether the clock is further on than the log believes."""
    return today > trusted_day(days, today) + _ONE_DAY


def out_of_date(files: Sequence[LogFile], keep: timedelta, today: date) -> list[LogFile]:
    """The files from the oldest on whose time is over. A file is as old as the oldest day that stands after it in the chain."""
    now = trusted_day([file.day for file in files], today)
    ages = reversed(list(accumulate((file.day for file in reversed(files)), min)))
    over = takewhile(lambda aged: aged[1] + keep < now, zip(files, ages, strict=True))
    return [file for file, _ in over]


def too_many(files: Sequence[LogFile], sizes: Sequence[int], bytes_max: int) -> list[LogFile]:
    """The oldest files, as many as must go for the rest to fit. The last one stays: it is being written."""
    over = sum(sizes) - bytes_max
    gone = accumulate(sizes, initial=0)
    return [file for file, before in zip(files[:-1], gone, strict=False) if before < over]


class Reserve:
    """Room on the disk for what operators do, also when nothing else has any: a file that is given up when the disk is full.

    While it is given up, ordinary entries are not written: they would take the room at once."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / RESERVE_NAME
        self._clock = clock
        self._is_held = False
        self._tried_s = -RETRY_S

    def hold(self) -> bool:
        """Whether the room is held, or could be taken again. It is tried once a second."""
        now_s = self._clock()
        if not self._is_held and now_s - self._tried_s >= RETRY_S:
            self._tried_s = now_s
            self._is_held = self._take()
        return self._is_held

    def give_up(self) -> bool:
        """Free the room. False: there was none."""
        if not self._is_held:
            return False
        self._is_held, self._tried_s = False, self._clock()
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False

    def _take(self) -> bool:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return False
        return True
