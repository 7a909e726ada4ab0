"""What leaves the audit log: days that are over by its own count, and the oldest files; and what is written on a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.audit.files import (
    CONFIRM_DAYS,
    RESERVE_BYTES,
    RETRY_S,
    LogFile,
    Reserve,
    log_files,
    out_of_date,
    too_many,
    trusted_day,
)
from poise.audit.log import AuditLog
from poise.audit.verify import verify
from tests.audit.test_chain import DAY, KEY, lines_of, writing

START = date(2026, 1, 1)


def on(*offsets: int) -> list[date]:
    return [START + timedelta(days=offset) for offset in offsets]


def files(days: Sequence[date]) -> list[LogFile]:
    return [LogFile(i + 1, day, Path(f"{i}")) for i, day in enumerate(days)]


@pytest.mark.parametrize(
    ("days", "today", "trusted"),
    [
        ([], 100, 100),
        ([0], 1, 1),
        ([0, 1, 2], 3, 3),
        ([0, 1, 2], 3650, 2),
        ([0, 1, 2, 3650], 3650, 2),
        ([0, 1, 2, 3650], 3651, 2),
        ([0, 1, 2, 3650, 3651], 3652, 3652),
        ([0, 1, 2, 3650], 3, 3),
        ([0, 1, 2, 3650, 3, 4], 5, 5),
        ([0, 1, 2, 3650, 3, 3650, 4], 3651, 4),
        ([0, 30, 31], 32, 32),
        ([0, 30, 31], 3650, 0),
        ([0, 30, 31, 32, 33], 3650, 33),
        ([0, 10, 20], 3650, 0),
        ([0, 10, 20, 30], 40, 20),
        ([0, 1, 2], 1, 1),
    ],
)
def test_the_day_that_the_log_believes(days: list[int], today: int, trusted: int) -> None:
    """A day at a time; further only when it was written on some more days. A clock that was put right is followed at once."""
    assert trusted_day(on(*days), on(today)[0]) == on(trusted)[0]


@given(st.lists(st.integers(0, 40), max_size=12).map(sorted), st.integers(100, 40_000))
def test_one_wrong_moment_deletes_nothing(days: list[int], jump: int) -> None:
    """Whatever the log has, and however far the clock is off: what was kept the day before is kept."""
    before = trusted_day(on(*days), on(days[-1] if days else 0)[0])
    kept = set(out_of_date(files(on(*days)), timedelta(days=90), before + timedelta(days=1)))
    assert set(out_of_date(files(on(*days)), timedelta(days=90), on(jump)[0])) <= kept
    assert set(out_of_date(files(on(*days, jump)), timedelta(days=90), on(jump)[0])) <= kept


def test_a_file_of_a_wrong_day_keeps_no_other() -> None:
    """It is as old as what was written after it."""
    days = on(0, 3650, 1, 2, *range(3, 103))
    gone = out_of_date(files(days), timedelta(days=90), days[-1])
    assert [file.day for file in gone] == days[:13]


def test_the_oldest_go_until_the_rest_fits() -> None:
    """Never the one that is being written."""
    found = files(on(0, 1, 2))
    assert too_many(found, [10, 10, 10], 30) == []
    assert too_many(found, [10, 10, 10], 29) == found[:1]
    assert too_many(found, [10, 10, 10], 5) == found[:2]


def test_a_clock_that_jumps_deletes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At a start or while it runs, ten years ahead and again; it is told. When the clock is right again, days count again."""
    for back in (3, 2, 1):
        with writing(tmp_path, now=lambda back=back: DAY - timedelta(days=back)) as log:
            log.put("request", {"tenant": "bob"})
    for _ in range(2):
        with writing(tmp_path, now=lambda: DAY + timedelta(days=3650)) as log:
            assert log.standing[3]
            log.put("request", {"tenant": "bob"})
    assert len(lines_of(tmp_path)) == 5
    assert "days after the audit log's last entry" in caplog.text
    today = DAY
    with writing(tmp_path, now=lambda: today) as log:
        log.put("request", {"tenant": "bob"})
        log.erase_content("x").result(10)
        assert not log.standing[3]
        for _ in range(100):
            today += timedelta(days=1)
            log.put("request", {"tenant": "bob"})
            log.erase_content("x").result(10)
    report = verify(tmp_path, KEY)
    assert (report.problem, report.n_lines) == ("", 91), "what is older than 90 days has gone, the wrong days with it"


def test_a_server_that_was_off_for_long_goes_on_deleting_some_days_later(tmp_path: Path) -> None:
    """It cannot tell a holiday from a wrong clock at once, and need not."""
    today: datetime = DAY
    with writing(tmp_path, keep_days=2, now=lambda: today) as log:
        log.put("request", {"tenant": "bob"})
        log.erase_content("x").result(10)
        today += timedelta(days=30)
        for i in range(CONFIRM_DAYS):
            log.put("request", {"tenant": "bob"})
            log.erase_content("x").result(10)
            assert len(log_files(tmp_path)) == (i + 2 if i < CONFIRM_DAYS - 1 else i + 1)
            today += timedelta(days=1)


def test_the_log_is_bounded_in_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The oldest files go before their days; the chain holds from what is left; it is told and counted."""
    with writing(tmp_path, rotate_bytes=2_000, bytes_max=10_000) as log:
        for i in range(200):
            log.put("request", {"tenant": "bob", "i": i})
        log.erase_content("x").result(10)
        n_bytes, bytes_max, n_early, _ = log.standing
        assert n_bytes == sum(file.path.stat().st_size for file in log_files(tmp_path)) <= bytes_max == 10_000
        assert n_early > 5
    report = verify(tmp_path, KEY)
    assert report.problem == ""
    assert report.last_seq == 200
    assert report.first_seq > 100
    assert "audit.max_mb" in caplog.text
    with writing(tmp_path, rotate_bytes=2_000, bytes_max=10_000) as log:
        assert log.standing[0] == sum(file.path.stat().st_size for file in log_files(tmp_path)), "counted at a start, too"


class FullDisk:
    """os.write and os.posix_fallocate of a disk with so many bytes left, besides what the reserve has."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        self._write, self._unlink = os.write, Path.unlink
        monkeypatch.setattr("poise.audit.writer.os.write", self.write)
        monkeypatch.setattr("poise.audit.files.os.posix_fallocate", self.allocate)
        monkeypatch.setattr("poise.audit.files.Path.unlink", lambda path, missing_ok=False: self.unlink(path, missing_ok))

    def write(self, descriptor: int, data: bytes) -> int:
        self._take(len(data))
        return self._write(descriptor, data)

    def allocate(self, descriptor: int, offset: int, size: int) -> None:
        self._take(size)
        os.truncate(descriptor, size)

    def unlink(self, path: Path, missing_ok: bool = False) -> None:
        if path.name == "reserve" and path.exists():
            self.left += path.stat().st_size
        self._unlink(path, missing_ok)

    def _take(self, size: int) -> None:
        if size > self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= size


def put(log: AuditLog, event: str) -> None:
    log.put(event, {"tenant": "x", "action": "pause"})
    log.erase_content("nobody").result(10)


def test_on_a_full_disk_what_operators_do_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By giving up the reserve, which ordinary entries may not use up; when there is room again, all of it is as before."""
    disk, now_s = FullDisk(monkeypatch, RESERVE_BYTES), 0.0
    with writing(tmp_path) as log:
        log._writer._reserve._clock = lambda: now_s
        put(log, "request")
        assert lines_of(tmp_path) == [], "there is no room but the reserve"
        put(log, "admin")
        for _ in range(3):
            put(log, "request")
        put(log, "key_revoked")
        assert [b'"event":"request"' in line for line in lines_of(tmp_path)] == [False, False]
        now_s, disk.left = RETRY_S, 2 * RESERVE_BYTES
        put(log, "request")
        assert log._writer._reserve.hold()
    report = verify(tmp_path, KEY)
    assert report.problem == ""
    assert report.events == {"admin": 1, "key_revoked": 1, "request": 1, "lost": 1}
    assert (tmp_path / "reserve").stat().st_size == RESERVE_BYTES


def test_a_full_queue_has_places_for_what_operators_do(tmp_path: Path) -> None:
    """However many requests there are."""
    with writing(tmp_path, queue_max=0) as log:
        log.put("request", {})
        log.put("admin", {"action": "erase"})
    assert verify(tmp_path, KEY).events == {"admin": 1, "lost": 1}


def test_the_reserve_is_tried_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stays full is not asked at each entry."""
    tries, now_s = 0, 0.0

    def full(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("poise.audit.files.os.posix_fallocate", full)
    reserve = Reserve(tmp_path, lambda: now_s)
    assert not any(reserve.hold() for _ in range(100))
    assert tries == 1
    now_s = RETRY_S
    assert not reserve.hold()
    assert tries == 2
    assert not reserve.give_up()
    assert list(tmp_path.iterdir()) == []
