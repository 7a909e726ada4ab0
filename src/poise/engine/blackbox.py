"""The black box: a little shared memory in which the engine notes what it is about to do, readable after its death.

Made by the gateway as an anonymous file (memfd) whose number the engine is given; both map it. What was written stays when the
engine is killed in the middle of a forward pass, so the gateway can tell who was being computed; and while it lives the gateway
can tell a long step from a hang.

Layout, in 64-bit words of this machine's byte order:

    0               LAYOUT
    1               how many records were written
    8               record A
    8 + RECORD      record B
    a record:  step, phase, at_ns, drained_ns, n_ids, then the first ID_MAX ids

The writer fills the record that was not written last, then counts it in word 1, which is written at once. So the last record is
whole at any moment, also when the writer dies over the next one. A reader that finds the same count before and after has read a
whole record; else it reads again."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

LAYOUT = 0x706F6973650001
"""Whose it is ("poise") and its version."""
N_BYTES = 8192
_N_WORDS = N_BYTES // 8
FIRST = 8
RECORD = (_N_WORDS - FIRST) // 2
ID_MAX = RECORD - 5
READ_TRIES = 100


class Phase(StrEnum):
    """What the engine is doing. The order is that of the numbers in the box."""

    LOADING = "loading"
    """Nothing was noted yet."""
    RESTING = "resting"
    """There is nothing to do: it waits for a message."""
    PLANNING = "planning"
    """Messages, the scheduler, sending: no request in particular."""
    COMPUTING = "computing"
    """Cells are carried or a forward pass is made, for the requests that are named."""
    TAKING = "taking"
    """It deals with a message about the request that is named, or opens it for its first pass."""


NAMING = (Phase.COMPUTING, Phase.TAKING)
"""Phases that name requests: an engine that ends in one ends, perhaps, because of them."""
_PHASES = tuple(Phase)
_RESTING, _PLANNING, _COMPUTING, _TAKING = map(_PHASES.index, _PHASES[1:])


@dataclass(frozen=True, slots=True)
class BoxReading:
    """What an engine noted last. Times are monotonic nanoseconds; 0: never.

    step         the step it was at
    at_ns        since when it has been in this phase, or in this forward pass
    drained_ns   when it last looked at its messages
    request_ids  whose rows or cells were being computed, or who was dealt with, as far as they fit; what the engine asked of
                 itself has ids below 0"""

    phase: Phase
    step: int = 0
    at_ns: int = 0
    drained_ns: int = 0
    request_ids: tuple[int, ...] = ()


class BlackBox:
    """The gateway's side: makes the memory, and reads it."""

    def __init__(self, fd: int) -> None:
        """`fd` is the box's from now on; an engine is given its number."""
        self.fd = fd
        self._map = mmap.mmap(fd, N_BYTES)
        self._words = memoryview(self._map).cast("q")

    @classmethod
    def create(cls) -> BlackBox:
        """A new box, not inherited by default. Raises OSError."""
        fd = os.memfd_create("poise-black-box", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, N_BYTES)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def clear(self) -> None:
        """As new, for another engine: the one before it has ended."""
        self._words[:] = array("q", bytes(N_BYTES))

    def read(self) -> BoxReading:
        """The last record. Raises ValueError when the memory is not a box of this version."""
        return read_words(self._words)

    def close(self) -> None:
        """Unmap and close. Later calls do nothing."""
        if not self._map.closed:
            self._words.release()
            self._map.close()
            os.close(self.fd)


class BoxWriter:
    """The engine's side. Without a file it writes into memory of its own, which ends with it."""

    def __init__(self, fd: int | None = None) -> None:
        buffer = bytearray(N_BYTES) if fd is None else mmap.mmap(fd, N_BYTES)
        self.words = memoryview(buffer).cast("q")
        self.words[0] = LAYOUT
        self._n_written = self.words[1]
        self._drained_ns = 0

    def resting(self, step: int, now_ns: int) -> None:
        self._write(step, _RESTING, now_ns, ())

    def planning(self, step: int, now_ns: int, *, drained: bool = False) -> None:
        """`drained`: the messages have just been looked at."""
        if drained:
            self._drained_ns = now_ns
        self._write(step, _PLANNING, now_ns, ())

    def computing(self, step: int, now_ns: int, request_ids: Sequence[int]) -> None:
        self._write(step, _COMPUTING, now_ns, request_ids)

    def taking(self, step: int, now_ns: int, request_id: int) -> None:
        self._write(step, _TAKING, now_ns, (request_id,))

    def _write(self, step: int, phase: int, now_ns: int, ids: Sequence[int]) -> None:
        n_written = self._n_written + 1
        at = FIRST + RECORD * (n_written & 1)
        record = array("q", (step, phase, now_ns, self._drained_ns, len(ids), *ids[:ID_MAX]))
        self.words[at : at + len(record)] = record
        self.words[1] = self._n_written = n_written


def read_words(words: memoryview[int]) -> BoxReading:
    """The last record of a box. Raises ValueError when it is not one of this version."""
    if words[0] == 0 and words[1] == 0:
        return BoxReading(Phase.LOADING)
    if words[0] != LAYOUT:
        raise ValueError(f"not a black box of this version: {words[0]:#x}, expected {LAYOUT:#x}")
    for _ in range(READ_TRIES):
        n_written = words[1]
        if n_written == 0:
            return BoxReading(Phase.LOADING)
        at = FIRST + RECORD * (n_written & 1)
        step, phase, at_ns, drained_ns, n_ids = words[at : at + 5].tolist()
        ids = tuple(words[at + 5 : at + 5 + max(0, min(n_ids, ID_MAX))].tolist())
        if words[1] == n_written and 0 < phase < len(_PHASES):
            return BoxReading(_PHASES[phase], step, at_ns, drained_ns, ids)
    raise ValueError("the black box changes faster than it can be read")
