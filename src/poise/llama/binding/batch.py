"""A llama_batch over numpy arrays, filled row by row without touching single items.

Filling a batch through ctypes item by item costs a microsecond per token. Here the arrays belong to numpy and the C struct
points into them; what never changes (every token belongs to exactly one sequence) is written once.

    row 0: tokens [0, n0) of slot s0 | row 1: tokens [n0, n0 + n1) of slot s1 | ..."""

import ctypes
from collections.abc import Sequence

import numpy as np

from poise.engine.ports import Row
from poise.llama.binding.library import BatchStruct, Library


class BatchBuffer:
    """Room for `tokens_max` tokens. `struct` is valid until the next `fill`."""

    def __init__(self, library: Library, tokens_max: int, positions_max: int) -> None:
        self.tokens_max = tokens_max
        self._token, self._position, self._slot = (np.zeros(tokens_max, np.int32) for _ in range(3))
        self._output = np.zeros(tokens_max, np.int8)
        self._one = np.ones(tokens_max, np.int32)
        self._slot_address = (self._slot.ctypes.data + 4 * np.arange(tokens_max)).astype(np.uintp)
        # Positions of any chunk are a slice of this.
        self._count = np.arange(positions_max + 1, dtype=np.int32)
        self.struct = self._point_to_arrays(library.batch())

    def _point_to_arrays(self, struct: BatchStruct) -> BatchStruct:
        int_pointer = ctypes.POINTER(ctypes.c_int32)
        struct.token = self._token.ctypes.data_as(int_pointer)
        struct.pos = self._position.ctypes.data_as(int_pointer)
        struct.n_seq_id = self._one.ctypes.data_as(int_pointer)
        struct.seq_id = self._slot_address.ctypes.data_as(ctypes.POINTER(int_pointer))
        struct.logits = self._output.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))
        return struct

    def fill(self, rows: Sequence[Row]) -> list[int]:
        """Write the rows. Returns where the tokens stand that are drawn after: of each row with `sample` the last one, and those
        before its guesses. These are the indices of logits."""
        outputs: list[int] = []
        end = 0
        for row in rows:
            start, end = end, end + len(row.tokens)
            assert end <= self.tokens_max, f"a batch of {end} tokens or more, and there is room for {self.tokens_max}"
            if end == start + 1:  # a decode: single items are faster than slices
                self._token[start] = row.tokens[0]
                self._position[start] = row.start
                self._slot[start] = row.slot
            else:
                self._token[start:end] = row.tokens
                self._position[start:end] = self._count[row.start : row.start + end - start]
                self._slot[start:end] = row.slot
                self._output[start:end] = 0
            self._output[end - 1] = row.sample
            if row.n_guessed:
                self._output[end - 1 - row.n_guessed : end] = 1
            if row.sample:
                outputs += range(end - 1 - row.n_guessed, end)
        self.struct.n_tokens = end
        return outputs

    def ask_for_all(self) -> list[int]:
        """Want the logits of every token filled in, not only of those that are to be sampled. Returns their indices."""
        n = self.struct.n_tokens
        self._output[:n] = 1
        return list(range(n))
