"""The shared memory of the host store: no overlap, nothing left of what was dropped, and nothing read that is not whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.engine import arena as module
from poise.engine.arena import Arena, make_memory
from poise.engine.ports import RunnerError
from poise.scheduler.memory.stored import StoredPrefix

MIB = 1 << 20


@pytest.fixture
def fd() -> Iterator[int]:
    made = make_memory(MIB)
    yield made
    os.close(made)


def entry(number: int, tenant: str = "a", n_cells: int = 16, n_bytes: int = 100) -> StoredPrefix:
    return StoredPrefix(number, tenant, "short", n_cells, n_bytes, tuple(range(2**64 - n_cells // 8, 2**64)))


def put(arena: Arena, number: int, tenant: str = "a", n_bytes: int = 100, *, whole: bool = True) -> None:
    arena.reserve(number, n_bytes, 16)[:] = bytes([number % 255 + 1]) * n_bytes
    if whole:
        arena.commit(entry(number, tenant))


def content(fd: int) -> bytes:
    """All that the file has behind its directory."""
    with Arena(fd) as arena:
        return bytes(arena._bytes[arena._begin : arena._begin + 8 * MIB])


def opened(fd: int) -> Arena:
    arena = Arena(fd)
    arena.inherit(b"f")
    return arena


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 400_000), st.integers(0, 30)), max_size=60))
def test_extents_never_overlap_and_nothing_is_left_of_what_was_dropped(steps: list[tuple[bool, int, int]]) -> None:
    """Entries come and go in any order: each keeps its bytes, lies within the range, and what is free reads as zeros."""
    fd = make_memory(2 * MIB)
    try:
        with opened(fd) as arena:
            kept: dict[int, int] = {}
            for number, (drops, n_bytes, which) in enumerate(steps, 1):
                if drops and kept:
                    gone = list(kept)[which % len(kept)]
                    del kept[gone]
                    arena.drop(gone)
                elif sum(kept.values()) + n_bytes <= 2 * MIB:
                    put(arena, number, n_bytes=n_bytes, whole=which % 3 > 0)
                    kept[number] = n_bytes
                spans = sorted(arena._extents.values())
                assert spans == arena._taken
                assert all(a[1] <= b[0] for a, b in pairwise(spans))
                assert all(arena._begin <= begin < end <= arena._end for begin, end in spans)
                assert not any(a < end and begin < b for a, b in arena._spare for begin, end in spans)
            assert all(bytes(arena.memory(n)) == bytes([n % 255 + 1]) * size for n, size in kept.items())
            assert not any(any(arena._bytes[begin:end]) for begin, end in arena._gaps() if end < arena._end)
            committed = sorted(arena.committed)
        with Arena(fd) as after:
            assert sorted(e.number for e in after.inherit(b"f")) == committed
            assert all(bytes(after.memory(n)) == bytes([n % 255 + 1]) * kept[n] for n in committed)
            assert not any(any(after._bytes[begin:end]) for begin, end in after._gaps() if end < after._end)
    finally:
        os.close(fd)


def test_what_is_given_up_is_used_again_and_given_back(fd: int) -> None:
    """The next entry takes the pages that are there; none are resident beyond those, and in the end none at all."""
    with opened(fd) as arena:
        put(arena, 1, n_bytes=MIB)
        put(arena, 2, n_bytes=100)
        resident = arena.file_bytes
        arena.drop(1)
        assert arena.file_bytes == resident
        put(arena, 3, n_bytes=MIB)
        assert arena.file_bytes == resident
        assert arena.resident_bytes <= resident + 3 * 4096
        arena.drop(3)
        arena.give_back()
        assert arena.file_bytes <= resident - MIB
        assert arena.resident_bytes < 4 * 4096


def test_only_so_much_of_what_was_given_up_stays(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest goes back at once."""
    monkeypatch.setattr(module, "SPARE_BYTES", MIB // 2)
    with opened(fd) as arena:
        for number in range(8):
            put(arena, number, n_bytes=MIB // 4)
        for number in range(8):
            arena.drop(number)
        assert arena.resident_bytes <= MIB // 2
        assert not any(arena._bytes[arena._begin : arena._begin + 4 * MIB])


def test_a_range_that_is_full_refuses(fd: int) -> None:
    """As a host without memory does; what is there stays."""
    with opened(fd) as arena:
        put(arena, 1)
        with pytest.raises(RunnerError, match="no room"):
            arena.reserve(2, 1 << 40, 16)
        assert arena.committed == [1]


def test_who_reads_what_is_left_has_it_in_the_order_of_its_use(fd: int) -> None:
    """With tenant, pool, cells and keys as they were."""
    with opened(fd) as arena:
        for number in (1, 2, 3):
            put(arena, number, tenant=f"t{number}")
        arena.reading(1)
        arena.read()
    with Arena(fd) as after:
        assert after.inherit(b"f") == [entry(2, "t2"), entry(3, "t3"), entry(1, "t1")]


def crash_over(fd: int, point: Callable[[Arena], None]) -> None:
    """A process that is killed in the middle of it."""
    pid = os.fork()
    if pid == 0:
        arena = opened_again(fd)
        point(arena)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def opened_again(fd: int) -> Arena:
    arena = Arena(fd)
    arena.inherit(b"f")
    return arena


def half_written(arena: Arena) -> None:
    arena.reserve(9, 5000, 16)[:2000] = b"s" * 2000


def without_its_mark(arena: Arena) -> None:
    put(arena, 9)
    arena._words[arena._word(arena._rows[9])] = 0


def read_in_its_last_step(arena: Arena) -> None:
    put(arena, 9)
    arena.reading(9)


def half_dropped(arena: Arena) -> None:
    put(arena, 9)
    arena.withhold(9)


@pytest.mark.parametrize("point", [half_written, without_its_mark, read_in_its_last_step, half_dropped])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_what_is_not_whole_or_was_being_read_is_never_read_again(fd: int, point: Callable[[Arena], None]) -> None:
    """A process is killed there. What else is there is found, and of that one nothing is left."""
    with opened(fd) as arena:
        put(arena, 1)
    crash_over(fd, point)
    with Arena(fd) as after:
        assert after.inherit(b"f") == [entry(1)]
    left = content(fd)
    assert left.count(bytes([10])) == 0
    assert b"s" * 100 not in left


def test_another_fingerprint_finds_nothing_and_overwrites_it(fd: int) -> None:
    """And so does one that is to take nothing over. From then on the memory is that engine's."""
    for fingerprint, keep in ((b"other", True), (b"other", False)):
        with opened(fd) as arena:
            put(arena, 1)
            put(arena, 2)
        with Arena(fd) as after:
            assert after.inherit(fingerprint, keep=keep) == []
            assert after.file_bytes <= after._begin
        assert not any(content(fd))
    with Arena(fd) as again:
        assert again.inherit(b"f") == []


def test_a_tenant_is_erased_without_an_engine(fd: int) -> None:
    """Its entries, its name, and what was not whole. The other's are as they were; what was being read stays out of reach."""
    with opened(fd) as arena:
        for number, tenant in ((1, "alice"), (2, "bob"), (3, "alice"), (4, "bob")):
            put(arena, number, tenant=tenant)
        put(arena, 5, whole=False)
        arena.reading(4)
    with Arena(fd) as keeper:
        keeper.erase("alice")
    left = content(fd)
    assert b"alice" not in left
    assert not [n for n in (1, 3, 5) if bytes([n + 1]) * 8 in left]
    assert bytes([3]) * 100 in left
    with Arena(fd) as after:
        assert after.inherit(b"f") == [entry(2, "bob")]


@pytest.mark.parametrize("word", range(1, 4))
@pytest.mark.parametrize("value", [-1, 0, 1, 1 << 62])
def test_a_directory_that_makes_no_sense_is_not_believed(fd: int, word: int, value: int) -> None:
    """Whatever an engine that went mad has written over it."""
    with opened(fd) as arena:
        put(arena, 1)
        put(arena, 2)
        arena._words[arena._word(arena._rows[1]) + word] = value
    with Arena(fd) as after:
        assert after.inherit(b"f") == [entry(2)]


def test_two_rows_of_one_place_are_not_both_believed(fd: int) -> None:
    """Nor two of one number."""
    with opened(fd) as arena:
        put(arena, 1)
        put(arena, 2)
        one, two = (arena._word(arena._rows[n]) for n in (1, 2))
        arena._words[one + 1 : one + 4] = arena._words[two + 1 : two + 4]
    with Arena(fd) as after:
        assert after.inherit(b"f") == [entry(2)]


def test_more_entries_than_rows_do_not_outlive_it(fd: int) -> None:
    """Nor one whose record has no room. This engine has them all the same."""
    with opened(fd) as arena:
        arena._free_rows = arena._free_rows[:1]
        put(arena, 1)
        put(arena, 2)
        assert arena.committed == [1]
        arena.drop(1)
        arena.reserve(3, 100, 16)
        arena.commit(replace(entry(3), tenant="n" * 9000))
        assert arena.committed == []
        assert bytes(arena.memory(2)) == bytes([3]) * 100


def test_it_is_no_file_on_a_disk_and_in_no_core_dump(fd: int) -> None:
    """A name of nothing in a folder; and the mapping is marked as not to be dumped."""
    assert os.readlink(f"/proc/self/fd/{fd}").startswith("/memfd:")
    assert not os.get_inheritable(fd)
    with opened(fd) as arena:
        put(arena, 1)
        maps = Path("/proc/self/smaps").read_text()
        part = maps[maps.index("/memfd:poise-store") :]
        flags = next(line for line in part.splitlines() if line.startswith("VmFlags"))
        assert " dd" in flags


def test_a_system_without_such_files_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the store ends with the engine."""
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(OSError, match="no anonymous files"):
        make_memory(MIB)
