"""Freed memory goes back to the system, also from between what stays."""

from __future__ import annotations

import asyncio
import platform
from pathlib import Path

import pytest

from poise.gateway.condition import memory
from poise.gateway.condition.memory import TRIM_EVERY_S, give_back
from poise.gateway.tasks import Tasks
from tests.gateway.fakes import WAIT_S, FakeEngine, make_app

MIB = 1 << 20


def resident_bytes() -> int:
    """Of this process, in private anonymous memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap")
def test_what_stays_does_not_keep_the_memory_of_what_went_beside_it() -> None:
    """Blocks of 100 kB, between which there is always a small one that stays: the C library alone keeps all of them."""
    give_back()
    before, large, small = resident_bytes(), list[bytes](), list[bytes]()
    for number in range(400):
        large.append(b"x" * (100_000 + number))
        small.append(b"y" * (2_000 + number))
    large.clear()
    assert resident_bytes() - before > 30 * MIB
    give_back()
    assert resident_bytes() - before < 6 * MIB
    assert len(small) == 400


async def test_the_gateway_does_it_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one of its tasks."""
    trimmed: list[float] = []
    passed_s, enough = 0.0, asyncio.Event()

    def trim(_: int) -> int:
        trimmed.append(passed_s)
        return 1

    async def sleep(seconds: float) -> None:
        nonlocal passed_s
        if passed_s == 3 * TRIM_EVERY_S:
            enough.set()
        if seconds != TRIM_EVERY_S or enough.is_set():
            await asyncio.Event().wait()  # another task, whose time does not come here; or the end
        passed_s += seconds

    monkeypatch.setattr(memory, "_malloc_trim", trim)
    tasks = Tasks(clock=lambda: passed_s, sleep=sleep)
    app = make_app(FakeEngine(), tasks=tasks)
    async with app.running():
        await asyncio.wait_for(enough.wait(), WAIT_S)
        assert "heap" in [task.name for task in tasks.rows()]
    assert trimmed == [TRIM_EVERY_S, 2 * TRIM_EVERY_S, 3 * TRIM_EVERY_S]


def test_another_c_library_has_nothing_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is done, and nothing fails."""
    monkeypatch.setattr(memory, "_malloc_trim", None)
    give_back()
