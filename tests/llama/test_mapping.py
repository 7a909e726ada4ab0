"""Memory for copies of KV state, without a model."""

from __future__ import annotations

import mmap
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from poise.engine.ports import RunnerError
from poise.llama.binding.mapping import Bytes, allocate

MIB = 1 << 20


def resident_bytes() -> int:
    """Of this process, in private anonymous memory."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_it_is_zeroed_and_can_be_written() -> None:
    """Of just the size that was asked for."""
    memory = allocate(100_001)
    assert memory.shape == (100_001,)
    assert memory.dtype == np.uint8
    assert not memory.any()
    memory.fill(7)
    assert memory.all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_states_that_come_and_go_leave_no_holes() -> None:
    """Memory is that of the states that are kept, as it was not in the C library's heap (+80 to 280 MiB beside 512)."""
    rng = random.Random(5)
    before, kept = resident_bytes(), list[Bytes]()
    for _ in range(400):
        state = allocate(min(12 * MIB, int(MIB * rng.lognormvariate(0, 1.2))))
        state.fill(1)
        kept.append(state)
        while sum(map(len, kept)) > 48 * MIB:
            kept.pop(rng.randrange(len(kept)))
    del state
    grown, held = resident_bytes() - before, sum(map(len, kept))
    assert held - MIB <= grown <= held + 4 * MIB
    kept.clear()
    assert resident_bytes() - before <= 4 * MIB


def test_no_memory_is_an_error_that_the_engine_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is then not stored; nothing else is lost."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(RunnerError, match="no memory for 5 bytes of KV state"):
        allocate(5)


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
def test_a_kernel_without_huge_pages_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """EINVAL is what it answers."""
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 12345)
    assert not allocate(5).any()
