"""The host store's bytes: states of slots, kept outside of llama.cpp until they are loaded again or dropped.

What is kept and for how long is the scheduler's decision (`poise.scheduler.store` has the books). What held somebody's
conversation is overwritten before its memory goes back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from poise.llama.context import PoolContext


@dataclass(frozen=True, slots=True)
class _State:
    pool: str
    n_cells: int
    data: npt.NDArray[np.uint8]


class StateStore:
    """States by entry number."""

    def __init__(self) -> None:
        self._states: dict[int, _State] = {}
        self.n_bytes = 0

    def keep(self, entry: int, context: PoolContext, slot: int, n_cells: int) -> int:
        """Copy a slot's `n_cells` cells. Returns their bytes. Raises RunnerError; then there is no such entry."""
        assert entry not in self._states, f"entry {entry} is there already"
        filled = context.filled(slot)
        assert filled == n_cells, f"slot {slot} of pool {context.info.name} has {filled} cells, not {n_cells}"
        data = context.read_own_state(slot)
        self._states[entry] = _State(context.info.name, n_cells, data)
        self.n_bytes += len(data)
        return len(data)

    def load(self, entry: int, context: PoolContext, slot: int, n_cells: int) -> None:
        """Put the first `n_cells` cells of an entry into an empty slot. Raises RunnerError; then the slot is empty."""
        state = self._states[entry]
        assert state.pool == context.info.name, f"entry {entry} is of pool {state.pool}, not {context.info.name}"
        assert n_cells <= state.n_cells, f"entry {entry} has {state.n_cells} cells, not {n_cells}"
        assert context.last_position(slot) < 0, f"load into slot {slot} of pool {state.pool}, which is not empty"
        context.write_state(slot, state.data, state.n_cells)
        if n_cells < state.n_cells:
            context.truncate(slot, n_cells)

    def drop(self, entry: int) -> None:
        """Overwrite and forget an entry."""
        state = self._states.pop(entry)
        state.data.fill(0)
        self.n_bytes -= len(state.data)

    def clear(self) -> None:
        for entry in list(self._states):
            self.drop(entry)
