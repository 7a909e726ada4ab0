"""One KV pool: a llama_context whose slots are streams of their own, and its books.

Separate streams (`kv_unified = false`) keep a long sequence from taxing the attention of the others. The number of cells
each slot holds is kept here too, so that a batch which does not fit is refused before llama.cpp sees it, and the sequences
that share no row with the mistake go on."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import numpy.typing as npt

from poise.engine.ports import Row, RunnerError
from poise.llama.binding.batch import BatchBuffer
from poise.llama.binding.library import FLASH_OFF, FLASH_ON, KV_TYPES, ContextPointer
from poise.llama.binding.mapping import Bytes, allocate
from poise.llama.binding.model import Model, ModelError
from poise.llama.files.cgroups import usable_threads
from poise.llama.files.memory import PoolSpec, available_bytes, outputs_max, state_bytes
from poise.wire.messages import PoolInfo

STATE_KEPT_BYTES = 32 << 20
"""The largest buffer for states on their way that a pool keeps; one of a whole long slot may need hundreds of MiB."""

SCRUB_SPARE_BYTES = 128 << 20
"""Memory that copies made for a scrub leave to everybody else on the host."""

DECODE_PROBLEMS = {
    1: "no room in the KV cells", 2: "aborted", -1: "invalid batch", -2: "out of memory", -3: "computation failed",
}  # fmt: skip


class PoolContext(AbstractContextManager["PoolContext"]):
    """A pool on a loaded model; free it with `close` before the model. A context manager.

    threads 0: one for each core that this process may use. `unified` builds one stream that all slots share.
    `every_position` makes room for `compute_every` with a whole batch."""

    def __init__(
        self,
        model: Model,
        spec: PoolSpec,
        *,
        batch_tokens: int,
        threads: int,
        kv_type: str,
        unified: bool = False,
        every_position: bool = False,
    ) -> None:
        flash = bool(spec.flash_attention)
        if kv_type != "f16" and not flash:
            raise ModelError(model.path, f"KV cells of type {kv_type} need flash attention in pool {spec.name}")
        self._library = model.library
        self._model = model
        params = self._library.context_default_params()
        params.n_ctx = spec.built_cells * (1 if unified else spec.n_slots)
        params.n_seq_max = spec.n_slots
        params.n_batch = params.n_ubatch = batch_tokens
        # The default would reserve a row of logits for each token of the batch.
        self.outputs_max = batch_tokens if every_position else outputs_max(spec.n_slots, batch_tokens, model.n_vocab)
        """Tokens of a row that `compute_every` takes at once."""
        params.n_outputs_max = self.outputs_max
        params.n_threads = params.n_threads_batch = threads or usable_threads()
        params.flash_attn_type = FLASH_ON if flash else FLASH_OFF
        params.type_k = params.type_v = KV_TYPES[kv_type]
        params.no_perf = True
        params.kv_unified = unified
        self._library.log.clear()
        self._pointer: ContextPointer | None = self._library.init_from_model(model.pointer, params)
        if self._pointer is None:
            raise ModelError(model.path, f"pool {spec.name} cannot be built ({self._library.log.reason()})")
        self._memory = self._library.get_memory(self._pointer)
        self._batch = BatchBuffer(self._library, batch_tokens, spec.slot_cells)
        self._filled = [0] * spec.n_slots
        self._tainted: set[int] = set()
        self._state = np.empty(0, np.uint8)
        self._rows_by_address: dict[int, npt.NDArray[np.float32]] = {}
        self._row_type = ctypes.c_float * model.n_vocab
        self.info = PoolInfo(
            name=spec.name,
            n_slots=spec.n_slots,
            slot_cells=spec.slot_cells,
            flash_attention=flash,
            kv_bytes=spec.n_slots * (spec.built_cells * model.kv_bytes_per_token(kv_type) + state_bytes(model.header)),
            cell_bytes=model.kv_bytes_per_token(kv_type),
        )

    @property
    def pointer(self) -> ContextPointer:
        assert self._pointer is not None, "the pool is closed"
        return self._pointer

    def use_threads(self, threads: int) -> None:
        """Compute with that many threads from the next pass on."""
        self._library.set_n_threads(self.pointer, threads, threads)

    def compute(self, rows: Sequence[Row]) -> list[npt.NDArray[np.float32]]:
        """One forward pass. Returns the logits of each row with `sample`, and of its guesses, valid until the next pass.

        Raises RunnerError. If the rows did not fit their slots, nothing changed; if the pass failed, their slots are empty."""
        for row in rows:
            self._check_fit(row)
        outputs = self._batch.fill(rows)
        self._decode(rows)
        return [self._logits(index) for index in outputs]

    def compute_every(self, row: Row) -> list[npt.NDArray[np.float32]]:
        """One forward pass of one row. Returns the logits of every token in it; else as `compute`."""
        self._check_fit(row)
        self._batch.fill([row])
        outputs = self._batch.ask_for_all()
        self._decode([row])
        return [self._logits(index) for index in outputs]

    def _decode(self, rows: Sequence[Row]) -> None:
        self._library.log.clear()
        code = self._library.decode(self.pointer, self._batch.struct)
        self._library.synchronize(self.pointer)  # a GPU may still be at it, and the caller takes the time
        if code != 0:
            for row in rows:
                self.release(row.slot)
            problem = f"{DECODE_PROBLEMS.get(code, 'unknown error')} ({code})"
            raise RunnerError(f"llama_decode: {problem} in pool {self.info.name}: {self._library.log.reason()}")
        for row in rows:
            self._filled[row.slot] += len(row.tokens)

    def _check_fit(self, row: Row) -> None:
        filled, slot = self._filled[row.slot], f"slot {row.slot} of pool {self.info.name}"
        if row.start != filled:
            raise RunnerError(f"{slot} holds {filled} cells, row starts at {row.start}")
        if filled + len(row.tokens) > self.info.slot_cells:
            raise RunnerError(f"{slot} has no room for {len(row.tokens)} more tokens")

    def _logits(self, index: int) -> npt.NDArray[np.float32]:
        pointer = self._library.get_logits_ith(self.pointer, index)
        if not pointer:
            raise RunnerError(f"no logits at {index} of a batch in pool {self.info.name}")
        # llama.cpp reuses its output buffer, so the same few addresses come back; making an array costs 2 µs.
        address = ctypes.addressof(pointer.contents)
        row = self._rows_by_address.get(address)
        if row is None:
            row = np.ctypeslib.as_array(self._row_type.from_address(address))
            self._rows_by_address[address] = row
        return row

    def taint(self, slot: int) -> None:
        """A slot's cells hold what is not a number. Attention multiplies even a forgotten cell, if only by zero, and that
        is not a number either: so the slot is overwritten when it is released."""
        self._tainted.add(slot)

    def release(self, slot: int) -> None:
        """Empty a slot. Of a tainted one nothing is left; raises RunnerError when that could not be done."""
        self._library.memory_seq_rm(self._memory, slot, -1, -1)
        self._filled[slot] = 0
        if slot in self._tainted:
            self._tainted.discard(slot)
            self.scrub()

    def scrub(self, *, if_room: bool = False) -> None:
        """Overwrite every cell that no slot holds, and what reading states has left behind.

        llama.cpp can forget single cells, but overwrite only all of them at once. So what slots hold is copied, everything is
        cleared, and the copies are put back. For that moment they take as much memory again, which is not in the books: where it
        is not there to be had nothing is begun, so that an erasure never brings the OOM killer. Raises RunnerError; then the
        pool is as it was, or, if a copy could not be put back, unusable. `if_room`: without room for copies it does nothing."""
        held = {slot: n_cells for slot, n_cells in enumerate(self._filled) if n_cells}
        needed = sum(self._library.state_seq_get_size(self.pointer, slot) for slot in held)
        left = available_bytes() - SCRUB_SPARE_BYTES
        if needed > left:
            if if_room:
                return
            raise RunnerError(
                f"to overwrite the free cells of pool {self.info.name} takes {needed >> 20} MiB for copies of what its slots "
                f"hold; {max(0, left) >> 20} MiB are left for that"
            )
        copies: dict[int, Bytes] = {}
        try:
            for slot, n_cells in held.items():
                copies[slot] = self.read_into(allocate(self.state_size(slot, n_cells)), slot)
            self._library.memory_clear(self._memory, True)
            self._filled = [0] * len(self._filled)
            for slot, state in copies.items():
                self.write_state(slot, state, held[slot])
        finally:
            for state in copies.values():
                state.fill(0)
        self._state.fill(0)

    def truncate(self, slot: int, n_cells: int) -> None:
        """Forget what a slot holds from position `n_cells` on.

        Raises RunnerError, with the slot empty, for a model whose memory cannot be shortened (a recurrent one)."""
        filled = self._filled[slot]
        assert 0 <= n_cells <= filled, f"slot {slot} of pool {self.info.name} holds {filled} cells, not {n_cells}"
        if not self._library.memory_seq_rm(self._memory, slot, n_cells, -1):
            self.release(slot)
            raise RunnerError(f"slot {slot} of pool {self.info.name} cannot be cut to {n_cells} cells with this model")
        self._filled[slot] = n_cells

    def double(self, slot: int, spare: int) -> None:
        """Give a slot of a unified pool a second copy of each of its cells, at the same positions.

        For measuring only: a pass then attends to twice the cells, while the sequence stands where it was."""
        self.write_state(spare, self.read_state(slot), self._filled[slot])
        self._library.memory_seq_cp(self._memory, spare, slot, -1, -1)
        self.release(spare)

    def move(self, source: int, target: int) -> None:
        """Carry a sequence's state to an empty slot. A copy through memory costs a fraction of a copy between streams.

        The source is empty afterwards, also when RunnerError is raised; then the target is empty too."""
        self._check_empty(target)
        try:
            if self._filled[source]:
                self.write_state(target, self.read_state(source), self._filled[source])
        finally:
            self.release(source)

    def copy(self, source: int, target: int, n_cells: int) -> None:
        """Put the first `n_cells` cells of a slot into an empty one. Raises RunnerError with the target empty."""
        filled = self._filled[source]
        assert 0 < n_cells <= filled, f"slot {source} of pool {self.info.name} holds {filled} cells, not {n_cells}"
        self.load(target, self.read_state(source), filled, n_cells)

    def load(self, slot: int, state: Bytes, n_held: int, n_cells: int) -> None:
        """Put the first `n_cells` of a state's `n_held` cells into an empty slot. Raises RunnerError with the slot empty."""
        self._check_empty(slot)
        self.write_state(slot, state, n_held)
        if n_cells < n_held:  # llama.cpp takes a state whole
            self.truncate(slot, n_cells)

    def _check_empty(self, slot: int) -> None:
        assert self._filled[slot] == 0, f"slot {slot} of pool {self.info.name} is to be filled and is not empty"

    def state_size(self, slot: int, n_cells: int) -> int:
        """Bytes of the state of a slot that holds `n_cells` cells."""
        filled = self._filled[slot]
        assert 0 < n_cells == filled, f"slot {slot} of pool {self.info.name} holds {filled} cells, not {n_cells}"
        return self._library.state_seq_get_size(self.pointer, slot)

    def read_state(self, slot: int) -> Bytes:
        """A slot's state, valid until the next call. Raises RunnerError."""
        size = self._library.state_seq_get_size(self.pointer, slot)
        if size > STATE_KEPT_BYTES:
            return self.read_into(allocate(size), slot)
        if size > len(self._state):
            self._state = allocate(min(size + size // 4, STATE_KEPT_BYTES))
        return self.read_into(self._state[:size], slot)

    def read_into(self, state: Bytes, slot: int) -> Bytes:
        """A slot's state into memory of exactly its size. Raises RunnerError."""
        self._library.log.clear()
        n = self._library.state_seq_get_data(self.pointer, _bytes_at(state), len(state), slot)
        if n != len(state):
            reason = self._library.log.reason()
            raise RunnerError(f"the state of slot {slot} of pool {self.info.name} could not be read: {reason}")
        return state

    def write_state(self, slot: int, state: Bytes, n_cells: int) -> None:
        """Put a state of `n_cells` cells into a slot, replacing what it held. Raises RunnerError with the slot empty."""
        self._library.log.clear()
        n = self._library.state_seq_set_data(self.pointer, _bytes_at(state), len(state), slot)
        if n != len(state):
            self.release(slot)
            reason = self._library.log.reason()
            raise RunnerError(f"a state could not be written to slot {slot} of pool {self.info.name}: {reason}")
        self._filled[slot] = n_cells

    def last_position(self, slot: int) -> int:
        """The highest position llama.cpp holds in a slot, -1 when it is empty."""
        return self._library.memory_seq_pos_max(self._memory, slot)

    def close(self) -> None:
        """Free the context. Later calls do nothing."""
        pointer, self._pointer = self._pointer, None
        self._rows_by_address.clear()
        if pointer is not None:
            self._library.free(pointer)

    def __exit__(self, *_: object) -> None:
        self.close()


def _bytes_at(array: Bytes) -> ctypes._Pointer[ctypes.c_uint8]:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
