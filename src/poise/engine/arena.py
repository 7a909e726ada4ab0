"""The host store's memory where it outlives an engine: shared memory that the gateway has made, with a directory of its entries.

An anonymous file (memfd), never one on a disk, whose number an engine is given; it maps it, and the gateway does only to erase.
Its range is larger than the store's budget, so that holes between entries never keep one out; pages are there only where
something was written. What may be kept the scheduler decides: here is no bound but the range.

    head      LAYOUT, how often entries were used, the fingerprint of the engine that writes
    rows      ROW words for each entry that may outlive this engine: WHOLE, where its extent begins, the bytes of its state and of
              its record, whether the present step reads it, when it was used last
    extents   a state, then its record (a StoredPrefix), each extent from the beginning of a page on

A row's first word is written last, when everything else is there, and goes first. So an engine may be killed at any moment: what
has no such word is not there for the next one. It is overwritten before anything else is put into the memory.

Pages that were never used cost ten times as much to write as those that are there (11 ms and 0.6 ms for 20 MB). So a few of those
that are given up stay for the next entry, overwritten; `give_back` has them returned to the system."""

import mmap
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress

import msgspec

from poise.engine.ports import RunnerError
from poise.scheduler.memory.stored import StoredPrefix

LAYOUT = 0x706F6973650101
"""Whose it is ("poise") and its version."""
WHOLE = 0x77686F6C65
ROW = 8
FINGERPRINT_BYTES = 32
RANGE = 4
"""The range is so many times the budget."""
ROW_SHARE = 1 << 20
"""There is a row for so much of the range, and ROWS_MIN to ROWS_MAX of them."""
ROWS_MIN, ROWS_MAX = 256, 1 << 16
SPARE_BYTES = 64 << 20
"""At most so much of what was given up stays for the next entry."""
RECORD_BYTES, RECORD_CELL_BYTES = 1024, 2
"""Room for a record: a key of nine bytes for each eight cells, and what else is in it."""
_PAGE = mmap.PAGESIZE
_HEAD_WORDS = _PAGE // 8
_ZEROS = bytes(1 << 20)
_MADV_POPULATE_READ = 22

Extent = tuple[int, int]


def make_memory(budget_bytes: int) -> int:
    """The number of a file in memory for a store of this budget, not inherited by default. Raises OSError, also where a system
    has no such files."""
    if not hasattr(os, "memfd_create"):
        raise OSError("this system has no anonymous files in memory")
    fd = os.memfd_create("poise-store", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, _pages(RANGE * budget_bytes + (64 << 20)))
    except BaseException:
        os.close(fd)
        raise
    return fd


class Arena(AbstractContextManager["Arena"]):
    """The mapped memory. One process at a time has it: an engine from `inherit` on, the gateway while there is none."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        size = os.fstat(fd).st_size
        self._map = mmap.mmap(fd, size)
        with suppress(OSError, AttributeError):
            self._map.madvise(mmap.MADV_DONTDUMP)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("q")
        self._n_rows = min(ROWS_MAX, max(ROWS_MIN, size // ROW_SHARE))
        self._begin, self._end = _pages(_PAGE + self._n_rows * ROW * 8), size
        self._rows: dict[int, int] = {}
        self._free_rows: list[int] = []
        self._extents: dict[int, Extent] = {}
        self._states: dict[int, int] = {}
        """How long the state of an entry is."""
        self._taken: list[Extent] = []
        """All extents, in order."""
        self._spare: list[Extent] = []
        """Pages of no extent that are there and hold nothing, in the order in which they were given up."""
        self._in_use: list[int] = []
        self._is_read = False

    @property
    def committed(self) -> list[int]:
        """Entries that outlive this engine."""
        return list(self._rows)

    @property
    def resident_bytes(self) -> int:
        """Memory that entries take, and what is kept for the next ones."""
        return sum(end - begin for begin, end in (*self._taken, *self._spare))

    @property
    def file_bytes(self) -> int:
        """Memory that the whole file takes, whoever has used it."""
        return os.fstat(self._fd).st_blocks * 512

    def inherit(self, fingerprint: bytes, *, keep: bool = True) -> list[StoredPrefix]:
        """What an engine with the same `fingerprint` has left whole, the longest unused first, unless it died while it read it.
        Everything else is overwritten; all of it without `keep`. From here on the memory is the caller's."""
        fingerprint = fingerprint.ljust(FINGERPRINT_BYTES, b"\0")[:FINGERPRINT_BYTES]
        known = self._words[0] == LAYOUT and bytes(self._bytes[16 : 16 + FINGERPRINT_BYTES]) == fingerprint
        entries = self._retain(lambda _, is_read: keep and known and not is_read)
        self._words[0] = LAYOUT
        self._bytes[16 : 16 + FINGERPRINT_BYTES] = fingerprint
        with suppress(OSError):  # an older kernel: they are mapped when they are read
            for begin, end in self._taken:
                self._map.madvise(_MADV_POPULATE_READ, begin, end - begin)
        return entries

    def erase(self, tenant: str) -> None:
        """For the gateway, while no engine has the memory: overwrite what is kept for a tenant, and what is not whole."""
        self._retain(lambda entry, _: entry.tenant != tenant)

    def clear(self) -> None:
        """For the gateway, while no engine has the memory: overwrite everything."""
        self._retain(lambda entry, _: False)

    def reserve(self, number: int, n_bytes: int, n_cells: int) -> memoryview:
        """Memory of `n_bytes` for the state of a new entry, this engine's alone until it is committed. Raises RunnerError."""
        assert self._is_read, "nothing may be written before what is there is known"
        assert number not in self._extents, f"entry {number} is stored already"
        length = _pages(n_bytes + RECORD_BYTES + RECORD_CELL_BYTES * n_cells)
        extent = self._find(length)
        if extent is None:
            raise RunnerError(f"no room for {n_bytes} bytes of KV state")
        self._take(number, extent, n_bytes)
        self._spare = [part for spare in self._spare for part in _without(spare, extent)]
        return self.memory(number)

    def memory(self, number: int) -> memoryview:
        """The state of an entry."""
        begin, _ = self._extents[number]
        return self._bytes[begin : begin + self._states[number]]

    def commit(self, entry: StoredPrefix) -> None:
        """The state of an entry is whole: it may outlive this engine. Where its record finds no room it does not."""
        begin, end = self._extents[entry.number]
        record, at = msgspec.msgpack.encode(entry), begin + self._states[entry.number]
        if at + len(record) > end or not self._free_rows:
            return
        self._bytes[at : at + len(record)] = record
        row = self._rows[entry.number] = self._free_rows.pop()
        word = self._word(row)
        self._words[word + 1 : word + ROW] = array("q", (begin, at - begin, len(record), 0, self._tick(), 0, 0))
        self._words[word] = WHOLE

    def withhold(self, number: int) -> None:
        """An entry is not to outlive this engine, if it was."""
        if (row := self._rows.pop(number, None)) is not None:
            self._clear_row(row)
            self._free_rows.append(row)
            self._in_use = [other for other in self._in_use if other != row]

    def reading(self, number: int) -> None:
        """An entry is about to be read: should the engine die of it, the next one is not given it."""
        if (row := self._rows.get(number)) is not None:
            self._words[self._word(row) + 4 : self._word(row) + 6] = array("q", (1, self._tick()))
            self._in_use.append(row)

    def read(self) -> None:
        """What was read did no harm."""
        for row in self._in_use:
            self._words[self._word(row) + 4] = 0
        self._in_use.clear()

    def drop(self, number: int) -> None:
        """Overwrite an entry. Whoever still has a view of it reads nothing of a tenant in it."""
        self.withhold(number)
        del self._states[number]
        begin, end = extent = self._extents.pop(number)
        self._taken.remove(extent)
        self._wipe(begin, end)
        self._spare.append(extent)
        self.give_back(SPARE_BYTES)

    def give_back(self, most: int = 0) -> None:
        """Return the pages to the system that are kept for the next entry, but for `most` bytes."""
        n_bytes = sum(end - begin for begin, end in self._spare)
        while n_bytes > most:
            begin, end = self._spare.pop(0)
            self._map.madvise(mmap.MADV_REMOVE, begin, end - begin)
            n_bytes -= end - begin

    def close(self) -> None:
        """Unmap it. There must be no view of it any more."""
        self._words.release()
        self._bytes.release()
        self._map.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _retain(self, may_stay: Callable[[StoredPrefix, bool], bool]) -> list[StoredPrefix]:
        """Of the entries that are whole those that may stay, the longest unused first; all else is overwritten and given back.

        `may_stay` is asked with whether the last step read it."""
        self._is_read = True
        for book in (self._rows, self._extents, self._states, self._taken, self._spare, self._in_use):
            book.clear()
        self._free_rows = []
        found: list[tuple[int, StoredPrefix]] = []
        for row in reversed(range(self._n_rows)):
            word = self._word(row)
            entry = self._entry(row) if self._words[word] == WHOLE else None
            if entry is not None and may_stay(entry, bool(self._words[word + 4])):
                begin, n_bytes, n_record = self._words[word + 1 : word + 4].tolist()
                self._take(entry.number, (begin, _pages(begin + n_bytes + n_record)), n_bytes)
                self._rows[entry.number] = row
                found.append((self._words[word + 5], entry))
            else:
                if self._words[word]:
                    self._clear_row(row)
                self._free_rows.append(row)
        for begin, end in self._gaps():
            self._sweep(begin, end)
        return [entry for _, entry in sorted(found, key=lambda pair: (pair[0], pair[1].number))]

    def _entry(self, row: int) -> StoredPrefix | None:
        """The record of a row, if it is one and no other entry has its place or its number."""
        word = self._word(row)
        begin, n_bytes, n_record = self._words[word + 1 : word + 4].tolist()
        end = begin + n_bytes + n_record
        is_sound = begin % _PAGE == 0 and self._begin <= begin and min(n_bytes, n_record) > 0 and end <= self._end
        if self._words[0] != LAYOUT or not is_sound or any(a < end and begin < b for a, b in self._taken):
            return None
        try:
            entry = msgspec.msgpack.decode(self._bytes[begin + n_bytes : end], type=StoredPrefix)
        except msgspec.MsgspecError:
            return None
        return entry if entry.number not in self._extents else None

    def _take(self, number: int, extent: Extent, n_bytes: int) -> None:
        self._extents[number], self._states[number] = extent, n_bytes
        self._taken.insert(bisect_left(self._taken, extent), extent)

    def _gaps(self) -> Iterator[Extent]:
        at = self._begin
        for begin, end in self._taken:
            if at < begin:
                yield at, begin
            at = end
        if at < self._end:
            yield at, self._end

    def _find(self, length: int) -> Extent | None:
        """A free extent: where most of it is there already, else the lowest one."""
        best: tuple[int, Extent] | None = None
        for begin, end in self._gaps():
            starts = [begin, *(spare for spare, _ in self._spare if begin < spare)]
            for start in starts:
                if start + length > end:
                    continue
                there = sum(max(0, min(b, start + length) - max(a, start)) for a, b in self._spare)
                if best is None or there > best[0]:
                    best = there, (start, start + length)
                if there == length:
                    return start, start + length
        return best[1] if best else None

    def _sweep(self, begin: int, end: int) -> None:
        """Overwrite and give back the pages of a gap that are there."""
        while begin < end:
            try:
                data = os.lseek(self._fd, begin, os.SEEK_DATA)
            except OSError:  # there are none from here on
                return
            if data >= end:
                return
            begin = min(end, os.lseek(self._fd, data, os.SEEK_HOLE))
            self._wipe(data, begin)
            self._map.madvise(mmap.MADV_REMOVE, data, begin - data)

    def _wipe(self, begin: int, end: int) -> None:
        for at in range(begin, end, len(_ZEROS)):
            n_bytes = min(len(_ZEROS), end - at)
            self._bytes[at : at + n_bytes] = _ZEROS[:n_bytes]

    def _word(self, row: int) -> int:
        return _HEAD_WORDS + row * ROW

    def _clear_row(self, row: int) -> None:
        word = self._word(row)
        self._words[word] = 0
        self._words[word + 1 : word + ROW] = array("q", bytes(8 * (ROW - 1)))

    def _tick(self) -> int:
        self._words[1] += 1
        return self._words[1]


def _pages(n_bytes: int) -> int:
    """Whole pages for so many bytes."""
    return -(-n_bytes // _PAGE) * _PAGE


def _without(extent: Extent, taken: Extent) -> Sequence[Extent]:
    """What is left of an extent."""
    (a, b), (begin, end) = extent, taken
    return [part for part in ((a, min(b, begin)), (max(a, end), b)) if part[0] < part[1]]
