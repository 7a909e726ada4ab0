"""The arrays behind a llama_batch hold what the C side should read."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from poise.engine.ports import Row
from poise.llama.binding.batch import BatchBuffer

Int = ctypes.c_int32


class BatchStruct(ctypes.Structure):
    """As llama.h declares llama_batch."""

    _fields_ = (
        ("n_tokens", Int),
        ("token", ctypes.POINTER(Int)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(Int)),
        ("n_seq_id", ctypes.POINTER(Int)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(Int))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def a_buffer(capacity: int = 16) -> BatchBuffer:
    library: Any = SimpleNamespace(batch=BatchStruct)
    return BatchBuffer(library, capacity, positions_max=100)


def read(buffer: BatchBuffer) -> list[tuple[int, int, int, int]]:
    """What C sees: token, position, slot and output of each item."""
    struct = buffer.struct
    assert all(struct.n_seq_id[i] == 1 for i in range(struct.n_tokens))
    return [(struct.token[i], struct.pos[i], struct.seq_id[i][0], struct.logits[i]) for i in range(struct.n_tokens)]


def test_rows_are_laid_out_one_after_the_other() -> None:
    """Chunks and decodes mixed; logits only for the last token of a row that samples."""
    buffer = a_buffer()
    rows = [Row(1, 0, 40, [7], True), Row(2, 2, 10, [3, 4, 5], False), Row(3, 5, 0, (8, 9), True)]
    assert buffer.fill(rows) == [0, 5]
    assert read(buffer) == [(7, 40, 0, 1), (3, 10, 2, 0), (4, 11, 2, 0), (5, 12, 2, 0), (8, 0, 5, 0), (9, 1, 5, 1)]


def test_nothing_of_an_earlier_batch_remains() -> None:
    """Outputs are cleared, and shorter batches end where they end."""
    buffer = a_buffer()
    buffer.fill([Row(i, i, 9, [i], True) for i in range(16)])
    assert buffer.fill([Row(1, 3, 50, [1, 2, 3], True)]) == [2]
    assert read(buffer) == [(1, 50, 3, 0), (2, 51, 3, 0), (3, 52, 3, 1)]
    assert buffer.fill([Row(1, 3, 53, [4], False)]) == []
    assert read(buffer) == [(4, 53, 3, 0)]


def test_a_batch_that_is_too_large_is_a_mistake() -> None:
    """The plan keeps to batch_tokens."""
    buffer = a_buffer(4)
    assert buffer.fill([Row(1, 0, 0, [1, 2, 3, 4], False)]) == []
    with pytest.raises(AssertionError, match="room for 4"):
        buffer.fill([Row(1, 0, 0, [1, 2, 3], False), Row(2, 1, 0, [1, 2], False)])
