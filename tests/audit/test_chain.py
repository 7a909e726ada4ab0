"""A log that is not what was written is told, whatever was done to it; one that is, is not."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.audit.chain import START, ChainError, Head, audit_key, check_line, encode_line
from poise.audit.files import HEAD_NAME, log_files
from poise.audit.log import AuditError, AuditLog
from poise.audit.verify import last_entries, verify

KEY = audit_key(b"pepper")
DAY = datetime(2026, 11, 24, 12, tzinfo=UTC)


@contextmanager
def writing(folder: Path, **arguments: Any) -> Iterator[AuditLog]:
    options: dict[str, Any] = {"rotate_bytes": 1 << 20, "keep_days": 90, "now": lambda: DAY}
    log = AuditLog(folder, KEY, **(options | arguments))
    try:
        yield log
    finally:
        log.close()


def written(folder: Path, n: int = 6, **arguments: Any) -> Path:
    """A log of n entries, the even ones of a tenant whose texts are on record."""
    with writing(folder, **arguments) as log:
        for i in range(n):
            tenant, content = ("alice", {"prompt": f"text {i}"}) if i % 2 == 0 else ("bob", None)
            log.put("request", {"tenant": tenant, "tokens": i, "share": 0.5}, content)
    return folder


def lines_of(folder: Path) -> list[bytes]:
    return [line for file in log_files(folder) for line in file.path.read_bytes().splitlines(keepends=True)]


def test_what_was_written_verifies(tmp_path: Path) -> None:
    """Also when it is gone on with, and nobody else can read it."""
    written(tmp_path / "log")
    report = verify(written(tmp_path / "log", 3), KEY)
    assert (report.problem, report.n_lines, report.last_seq, report.n_contents) == ("", 9, 9, 5)
    assert report.events == {"request": 9}
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "log").iterdir()}
    assert (modes, stat.S_IMODE((tmp_path / "log").stat().st_mode)) == ({0o600}, 0o700)
    assert [b'"tokens":%d' % i in line for i, line in enumerate(last_entries(tmp_path / "log", 2), 1)] == [True, True]


def test_the_chain_needs_its_key(tmp_path: Path) -> None:
    """Who has the files only cannot make a chain that holds, nor check one."""
    written(tmp_path)
    assert "another pepper" in verify(tmp_path, audit_key(b"other")).problem
    line, link = encode_line(START, {"event": "x"}, audit_key(b"other"))
    with pytest.raises(ChainError, match="was changed"):
        check_line(line, START, KEY)
    assert check_line(line, START, audit_key(b"other"))[1] == link


TAMPERING: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "edited": (lambda x: [*x[:2], x[2].replace(b'"tokens":2', b'"tokens":9'), *x[3:]], "line 3 .*was changed"),
    "content edited": (lambda x: [*x[:2], x[2].replace(b"text 2", b"text 7"), *x[3:]], "line 3 .*content was changed"),
    "respelled": (lambda x: [*x[:2], x[2].replace(b":0.5", b":5e-1"), *x[3:]], "line 3 .*not spelled"),
    "dropped": (lambda x: x[:2] + x[3:], "line 3 .*the number 4 where 3 must follow"),
    "first dropped": (lambda x: x[1:], "line 1 .*the number 2 where 1 must follow"),
    "inserted": (lambda x: [*x[:2], x[1], *x[2:]], "line 3 .*the number 2 where 3 must follow"),
    "reordered": (lambda x: [*x[:2], x[3], x[2], *x[4:]], "line 3 .*the number 4 where 3"),
    "end dropped": (lambda x: x[:-1], "ends with line 5, but was 6 lines long"),
    "cut off": (lambda x: [*x[:-1], x[-1][:-9]], "line 6 .*is cut off"),
    "all dropped": (lambda _: [], "ends with line 0, but was 6 lines long"),
    "no line": (lambda x: [*x[:3], b"hello\n", *x[4:]], "line 4 .*is not an entry"),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_every_kind_of_tampering_is_named(tmp_path: Path, name: str) -> None:
    """With the file and the line."""
    written(tmp_path)
    tamper, expected = TAMPERING[name]
    (file,) = log_files(tmp_path)
    lines = lines_of(tmp_path)
    changed = tamper(lines)
    assert changed != lines
    file.path.write_bytes(b"".join(changed))
    assert re.search(expected, verify(tmp_path, KEY).problem)


def test_files_that_are_missing_are_told(tmp_path: Path) -> None:
    """The first, one in the middle, the last, and the head."""
    written(tmp_path / "log", rotate_bytes=300)
    names = [file.path.name for file in log_files(tmp_path / "log")]
    assert len(names) > 3
    for i, name in enumerate([names[0], names[2], names[-1], HEAD_NAME]):
        copy = tmp_path / f"copy{i}"
        shutil.copytree(tmp_path / "log", copy)
        (copy / name).unlink()
        assert verify(copy, KEY).problem
    assert "there is no audit log" in verify(tmp_path / "nowhere", KEY).problem


def test_an_older_head_does_not_hide_what_was_forged(tmp_path: Path) -> None:
    """A head without the key is refused."""
    written(tmp_path)
    head = tmp_path / HEAD_NAME
    head.write_bytes(head.read_bytes().replace(b'"seq":6', b'"seq":5'))
    assert "head file was changed" in verify(tmp_path, KEY).problem
    with pytest.raises(ChainError):
        Head.decode(b"{}", KEY)


@settings(max_examples=80)
@given(data=st.data())
def test_any_change_of_the_bytes_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes replaced, removed and put in, lines moved and doubled, at random: none of it verifies."""
    folder = tmp_path_factory.mktemp("log", numbered=True)
    written(folder, 5)
    (file,) = log_files(folder)
    before = file.path.read_bytes()
    start = data.draw(st.integers(0, len(before) - 1))
    end = data.draw(st.integers(start, min(len(before), start + data.draw(st.sampled_from((1, 8, 400))))))
    put = data.draw(st.one_of(st.binary(max_size=4), st.just(before[: before.index(b"\n") + 1])))
    after = before[:start] + put + before[end:]
    file.path.write_bytes(after)
    report = verify(folder, KEY)
    if after == before:
        assert not report.problem
    elif after.startswith(before) and b"\n" not in after[len(before) :]:
        assert report.n_lines == 5, "half a line after the end is one that is being written"
    elif not report.problem:
        assert report.n_erased, "the one change that is allowed: content is gone, and is counted as erased"
    shutil.rmtree(folder)


def test_content_can_be_erased(tmp_path: Path) -> None:
    """Of one tenant; the entries stay, and verify."""
    folder = tmp_path / "log"
    with writing(folder, rotate_bytes=700) as log:
        for i in range(6):
            log.put("request", {"tenant": "alice" if i < 4 else "bob"}, {"prompt": f"secret-{i}"})
        assert log.erase_content("alice").result(10) == 4
        assert log.erase_content("alice").result(10) == 0
        log.put("request", {"tenant": "alice"}, {"prompt": "new"})
    report = verify(folder, KEY)
    assert (report.problem, report.n_lines, report.n_contents, report.n_erased) == ("", 7, 3, 4)
    text = b"".join(lines_of(folder))
    assert b"secret-3" not in text
    assert b"secret-4" in text


def test_files_rotate_by_day_and_go_after_their_time(tmp_path: Path) -> None:
    """The chain holds from the first line that is kept; a file that goes before its time is missed."""
    today = DAY
    with writing(tmp_path, keep_days=2, now=lambda: today) as log:
        for _ in range(5):
            log.put("request", {"tenant": "bob"})
            log.erase_content("nobody").result(10)  # it has been written
            today += timedelta(days=1)
    files = log_files(tmp_path)
    assert [file.day.day for file in files] == [26, 27, 28]
    report = verify(tmp_path, KEY)
    assert (report.problem, report.first_seq, report.last_seq) == ("", 3, 5)
    files[0].path.unlink()
    assert "line 3 must follow" in verify(tmp_path, KEY).problem


def test_after_a_power_failure_it_goes_on(tmp_path: Path) -> None:
    """Half a line is cut off; whole lines that the head does not know are taken up."""
    written(tmp_path, 2)
    head = (tmp_path / HEAD_NAME).read_bytes()
    written(tmp_path, 2)
    (tmp_path / HEAD_NAME).write_bytes(head)  # it had not been brought up to date
    with log_files(tmp_path)[-1].path.open("ab") as file:
        file.write(b'{"event":"requ')
    assert not verify(tmp_path, KEY).problem
    report = verify(written(tmp_path, 1), KEY)
    assert (report.problem, report.n_lines) == ("", 5)


def test_what_is_missing_stays_missing(tmp_path: Path) -> None:
    """A log whose end was cut off is gone on with after the gap, which is told for ever."""
    written(tmp_path, 4)
    (file,) = log_files(tmp_path)
    file.path.write_bytes(b"".join(lines_of(tmp_path)[:2]))
    assert "line 3 must follow" in verify(written(tmp_path, 2), KEY).problem


def test_a_full_queue_never_waits_and_is_told(tmp_path: Path) -> None:
    """What finds no room is counted, and the count is an entry."""
    with writing(tmp_path, queue_max=3) as log, log._wake:  # the writer cannot take anything meanwhile
        for i in range(10):
            log.put("request", {"i": i})
    report = verify(tmp_path, KEY)
    assert (report.problem, report.events) == ("", {"request": 3, "lost": 1})
    assert b'"entries":7' in lines_of(tmp_path)[-1]


def test_content_that_waits_has_a_bound_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand places are a bound for entries, not for prompts of megabytes. What has no content always fits."""
    monkeypatch.setattr("poise.audit.log.CONTENT_BYTES_MAX", 10_000)
    messages = [{"role": "user", "content": [{"type": "text", "text": "x" * 3_900}]}]
    with writing(tmp_path) as log:
        with log._wake:  # the writer cannot take anything meanwhile
            for _ in range(4):
                log.put("request", {}, {"prompt": messages, "output": ["fine"]})
            log.put("request", {})
        log.erase_content("nobody").result(10)  # now it has
        log.put("request", {}, {"prompt": messages, "output": ["fine"]})
    report = verify(tmp_path, KEY)
    assert (report.problem, report.events) == ("", {"request": 4, "lost": 1})


class Watched:
    """What a writer tells of itself."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.n_lost = 0
        self.failures: list[str] = []
        self.divided = Event()

    def worked(self, part: str, seconds: float) -> None:
        assert seconds >= 0
        self.parts.append(part)

    def lost(self, n_entries: int) -> None:
        self.n_lost += n_entries

    def failed(self, error: BaseException) -> None:
        self.failures.append(type(error).__name__)
        if isinstance(error, ZeroDivisionError):
            self.divided.set()


def test_a_disk_that_is_slow_shows_while_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only afterwards: a disk that never comes back would never be told otherwise."""
    monkeypatch.setattr("poise.audit.log.SYNC_EVERY_S", 0.0)
    entered, released = Event(), Event()

    def stuck(_: int) -> None:
        entered.set()
        assert released.wait(10)

    with writing(tmp_path) as log:
        log.watch = watched = Watched()
        monkeypatch.setattr("poise.audit.writer.os.fsync", stuck)
        log.put("request", {"i": 0})
        assert entered.wait(10)
        log.put("request", {"i": 1})
        assert (log.busy_s > 0, log.n_queued) == (True, 1)
        released.set()
    assert (log.busy_s, log.n_queued, watched.n_lost) == (0.0, 0, 0)
    assert {"write", "sync"} == set(watched.parts)


def test_the_writer_survives_what_nobody_foresaw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is there for the next entry; what failed is told, and what was lost is counted."""
    with writing(tmp_path) as log:
        log.watch = watched = Watched()
        good = log._writer.write
        monkeypatch.setattr(log._writer, "write", lambda *_, **__: dict[str, bool]()["nothing"])
        log.put("request", {"i": 0})
        log.erase_content("x").result(10)
        monkeypatch.setattr(log._writer, "write", good)
        monkeypatch.setattr(log, "_carry_out", lambda _: 1 // 0)
        log.put("request", {"i": 1})
        assert watched.divided.wait(10)
        monkeypatch.undo()
        log.put("request", {"i": 2})
        log.erase_content("x").result(10)
    assert set(watched.failures) == {"KeyError", "ZeroDivisionError"}
    assert b'"i":2' in lines_of(tmp_path)[-1]


def test_what_is_lost_is_counted_where_it_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that found the queue full, and one that the disk did not take."""
    with writing(tmp_path, queue_max=1) as log:
        log.watch = watched = Watched()
        with log._wake:  # the writer cannot take anything meanwhile
            for i in range(3):
                log.put("request", {"i": i})
        log.erase_content("x").result(10)
        assert watched.n_lost == 2
        write = os.write
        monkeypatch.setattr("poise.audit.writer.os.write", lambda fd, data: write(fd, data[:10]))
        log.put("request", {"i": 3})
        log.erase_content("x").result(10)
        monkeypatch.setattr("poise.audit.writer.os.write", write)
    assert watched.n_lost == 3
    assert verify(tmp_path, KEY).events["request"] == 1


def test_a_disk_that_fails_is_told_once_it_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the application's log; no half line in the audit log."""
    write = os.write
    with writing(tmp_path) as log:
        log.put("request", {"i": 0})
        log.erase_content("x").result(10)
        monkeypatch.setattr("poise.audit.writer.os.write", lambda fd, data: write(fd, data[:10]))
        for i in (1, 2):
            log.put("request", {"i": i})
            log.erase_content("x").result(10)
        monkeypatch.setattr("poise.audit.writer.os.write", write)
        log.put("request", {"i": 3})
    report = verify(tmp_path, KEY)
    assert report.problem == ""
    assert report.events == {"request": 2, "lost": 1}
    assert caplog.text.count("cannot be written") == 1


def test_one_folder_has_one_writer(tmp_path: Path) -> None:
    """Two servers would each break the other's chain."""
    with writing(tmp_path), pytest.raises(AuditError, match="another server writes it"):
        AuditLog(tmp_path, KEY, rotate_bytes=1, keep_days=1)
    written(tmp_path)


def test_who_has_to_know_is_told_when_an_entry_is_with_the_system(tmp_path: Path) -> None:
    """In that moment the line is in the file, before the log is forced to the disk or closed."""
    with writing(tmp_path) as log:
        log.written("egress", {"request": "r"}).result(10)
        assert b'"egress"' in b"".join(lines_of(tmp_path))


def test_an_entry_that_is_not_written_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, in a full queue, after the end: an error each time, and the entry is counted as lost."""
    with writing(tmp_path) as log:
        log.written("egress", {}).result(10)
        write = os.write

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(AuditError):
            log.written("egress", {}).result(10)
        monkeypatch.setattr(os, "write", write)
    with pytest.raises(AuditError):
        log.written("egress", {}).result(10)
    with writing(tmp_path, queue_max=0) as log, pytest.raises(AuditError):
        log.written("egress", {}).result(10)
    assert verify(tmp_path, KEY).events == {"egress": 1, "lost": 2}


def test_who_gave_up_waiting_does_no_harm(tmp_path: Path) -> None:
    """The entry is there all the same, and those after it."""
    with writing(tmp_path) as log:
        for _ in range(50):
            log.written("egress", {}).cancel()
        log.written("egress", {}).result(10)
    assert verify(tmp_path, KEY).events == {"egress": 51}
