"""Reading the flight recorder while the engine runs: page by page, from a copy, in a thread of its own.

The loop copies references, which takes some microseconds, and does nothing else: to format four thousand entries takes longer
than a step. The thread formats a page when it is asked for one and rests after every few entries, so that the loop never waits
long for the interpreter. One reader at a time: who begins takes the place of who was reading."""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from queue import SimpleQueue

from poise.engine.journal import Journal
from poise.wire import messages as wire
from poise.wire import to_engine

PAGE_BYTES = 64 << 10
PAGE_ENTRIES = 128
BREATH_ENTRIES = 4
BREATH_S = 0.001
"""A rest after every few entries. They are formatted in some 0.2 ms, which is all that the loop waits for."""
NICE = 10


class JournalDesk:
    """Hands out pages through `send`, which must be callable from another thread. The thread begins with the first reader."""

    def __init__(self, send: Callable[[wire.ToGateway], None]) -> None:
        self._send = send
        self._asked: SimpleQueue[tuple[to_engine.ReadJournal, Journal | None]] = SimpleQueue()
        self._copy: Journal | None = None
        """What is being read, for who erases, and by which reader."""
        self._read_id = 0
        self._thread: threading.Thread | None = None

    def read(self, message: to_engine.ReadJournal, journal: Journal) -> None:
        """From the loop: have the next page made, the first one of a new copy."""
        if message.begins:
            self._copy, self._read_id = journal.copy(), message.read_id
        elif message.ends and message.read_id == self._read_id:
            self._copy = None
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="journal", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there is no thread left: a reader less, and no fault of the loop
                self._send(wire.JournalPage(message.read_id, [], is_lost=True))
                return
            self._thread = thread
        self._asked.put((message, self._copy if message.begins else None))

    def erase(self, tenant: str) -> None:
        """From the loop: pages that are still to come do not name the tenant, either."""
        if self._copy is not None:
            self._copy.erase(tenant)

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # it is slower without, and no fault
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        with contextlib.suppress(EOFError):  # the gateway is gone: the loop ends, too
            self._hand_out()

    def _hand_out(self) -> None:
        reader = 0
        lines: Iterator[str] = iter(())
        while True:
            message, copy = self._asked.get()
            if copy is not None:
                reader, lines = message.read_id, iter(copy.lines())
            elif message.ends and message.read_id == reader:
                reader, lines = 0, iter(())
            if message.ends:
                continue
            if message.read_id != reader:
                self._send(wire.JournalPage(message.read_id, [], is_lost=True))
                continue
            try:
                page = list(_page(lines))
            except Exception:
                # The thread must be there for the next reader. What could not be formatted is in the traceback.
                traceback.print_exc()
                self._send(wire.JournalPage(reader, [], is_lost=True))
                reader, lines = 0, iter(())
                continue
            self._send(wire.JournalPage(reader, page, is_last=not page))


def _page(lines: Iterator[str]) -> Iterator[str]:
    """The next lines, a breath after every few of them; none: there are no more."""
    n_bytes = 0
    for number in count(1):
        line = next(lines, None)
        if line is None:
            return
        yield line
        n_bytes += len(line)
        if n_bytes >= PAGE_BYTES or number >= PAGE_ENTRIES:
            return
        if number % BREATH_ENTRIES == 0:
            time.sleep(BREATH_S)
