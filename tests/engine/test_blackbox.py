"""What the engine notes in its black box can be read by another process, at any moment, also after its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from array import array

import pytest

from poise.engine.blackbox import FIRST, ID_MAX, LAYOUT, RECORD, BlackBox, BoxReading, BoxWriter, Phase, read_words


def test_an_empty_box_says_loading() -> None:
    """Nothing was written yet, by nobody or by a writer that has only just opened it."""
    box = BlackBox.create()
    fd = box.fd
    assert box.read() == BoxReading(Phase.LOADING)
    BoxWriter(fd)
    assert box.read() == BoxReading(Phase.LOADING)
    box.close()
    box.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_the_last_record_is_read() -> None:
    """Phase, step, times and ids; when the messages were drained stays known."""
    box = BlackBox.create()
    writer = BoxWriter(box.fd)
    writer.resting(6, 50)
    assert box.read() == BoxReading(Phase.RESTING, 6, 50, 0)
    writer.planning(7, 100, drained=True)
    assert box.read() == BoxReading(Phase.PLANNING, 7, 100, 100)
    writer.computing(7, 120, [5, 9, -2])
    assert box.read() == BoxReading(Phase.COMPUTING, 7, 120, 100, (5, 9, -2))
    writer.planning(7, 130)
    assert box.read() == BoxReading(Phase.PLANNING, 7, 130, 100)


def test_more_ids_than_fit_are_cut() -> None:
    """There are never that many slots; and it must not write beyond its record."""
    writer = BoxWriter()
    writer.computing(1, 1, range(1, 10))
    writer.computing(2, 2, list(range(ID_MAX + 50)))
    assert read_words(writer.words).request_ids == tuple(range(ID_MAX))
    writer.resting(3, 3)
    assert read_words(writer.words) == BoxReading(Phase.RESTING, 3, 3)


def test_another_layout_is_refused() -> None:
    """A gateway and an engine of two versions."""
    writer = BoxWriter()
    writer.words[0] = LAYOUT + 1
    with pytest.raises(ValueError, match="of this version"):
        read_words(writer.words)


def test_a_record_that_is_being_written_is_not_read() -> None:
    """A writer that dies over a record leaves the one before whole."""
    writer = BoxWriter()
    for step in (1, 2, 3):
        writer.computing(step, step, [step] * step)
        next_record = FIRST + RECORD * ((step + 1) & 1)
        writer.words[next_record : next_record + 3] = array("q", [99, -1, 99])
        assert read_words(writer.words) == BoxReading(Phase.COMPUTING, step, step, 0, (step,) * step)


def test_torn_records_are_never_read() -> None:
    """A reader beside a writer that does nothing but write: every record it sees is one that was written."""
    box = BlackBox.create()
    writer = BoxWriter(box.fd)
    over = threading.Event()

    def write() -> None:
        n = 1
        while not over.is_set():
            writer.computing(n, n, [n] * (n % 60))
            n += 1

    thread = threading.Thread(target=write)
    thread.start()
    last = 0
    try:
        for _ in range(5000):
            reading = box.read()
            if reading.phase is Phase.COMPUTING:
                n = reading.step
                assert (reading.at_ns, reading.request_ids) == (n, (n,) * (n % 60))
                assert n >= last
                last = n
    finally:
        over.set()
        thread.join()


WRITER = """
import os, signal, sys
from poise.engine.blackbox import BoxWriter
writer = BoxWriter(int(sys.argv[1]))
writer.planning(41, 1000, drained=True)
writer.computing(42, 2000, [7, 8])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_its_last_words() -> None:
    """In another process, by a signal that nothing can catch."""
    box = BlackBox.create()
    fd = box.fd
    done = subprocess.run([sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd], check=False)
    assert done.returncode == -signal.SIGKILL
    assert box.read() == BoxReading(Phase.COMPUTING, 42, 2000, 1000, (7, 8))
