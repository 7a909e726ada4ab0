"""What a model and its pools need in memory, and whether this host has it.

llama.cpp allocates until the kernel kills the process. So the need is reckoned from the file's header before anything is
loaded (`poise.llama.fitting.fit` compares), and so is what this process may use: the host's free memory, and every memory
limit of its control groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from poise.llama.files.cgroups import CGROUP, PROC, folders, text_of
from poise.llama.files.gguf import GgufHeader
from poise.llama.files.layers import layers, state_elements

CELLS_STEP = 256
"""llama.cpp rounds a slot's cells up to a multiple of this."""

KV_BLOCK = 32
"""Elements of a block of the quantised types."""

STATE_ELEMENT_BYTES = 4
"""llama.cpp keeps recurrent states as float32."""
SCORED_TOKENS, SCORED_BYTES = 32, 8 << 20
"""Tokens of a prompt that is scored for which all logits are held at once, and the most that these may take."""

KV_ELEMENT_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """A pool to build: `n_slots` slots of `slot_cells` cells. `flash_attention` None: to be measured."""

    name: str
    n_slots: int
    slot_cells: int
    flash_attention: bool | None = None

    def cut_to(self, context_train: int) -> "PoolSpec":
        """The pool with slots no longer than the context the model was trained on (0: unknown)."""
        return replace(self, slot_cells=min(self.slot_cells, context_train)) if context_train else self

    @property
    def built_cells(self) -> int:
        """Cells of a slot as llama.cpp builds it."""
        return -(-self.slot_cells // CELLS_STEP) * CELLS_STEP


@dataclass(frozen=True, slots=True)
class PoolNeed:
    """A pool as it will be built, and its bytes by purpose. `state`: what its sequences have beside their cells."""

    name: str
    n_slots: int
    slot_cells: int
    kv: int
    compute: int
    state: int = 0


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes by purpose. The store is counted full; the reserve is what must stay free beside all of it."""

    weights: int
    pools: tuple[PoolNeed, ...]
    kv_type: str = "f16"
    store: int = 0
    reserve: int = 0

    @property
    def kv(self) -> int:
        return sum(pool.kv for pool in self.pools)

    @property
    def state(self) -> int:
        return sum(pool.state for pool in self.pools)

    @property
    def compute(self) -> int:
        return sum(pool.compute for pool in self.pools)

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.state + self.compute + self.store + self.reserve


def kv_bytes_per_token(header: GgufHeader, kv_type: str) -> int:
    """Bytes of one KV cell over all layers, from the file's metadata (keys and values of every KV head).

    Layers with a sliding window count in full: cells behind it are kept, so that a beginning can be used again."""
    heads = sum(n_heads for n_heads, _ in layers(header))
    return int(heads * sum(_head_elements(header)) * KV_ELEMENT_BYTES[kv_type])


def state_bytes(header: GgufHeader) -> int:
    """Bytes of one sequence's recurrent state over all layers: the same however long it is. 0: there is none."""
    return STATE_ELEMENT_BYTES * state_elements(header) * sum(has_state for _, has_state in layers(header))


def can_quantise_kv(header: GgufHeader) -> bool:
    """Whether the model's heads are whole blocks of the quantised types; llama.cpp refuses others."""
    return all(elements > 0 and elements % KV_BLOCK == 0 for elements in _head_elements(header))


def _head_elements(header: GgufHeader) -> tuple[int, int]:
    """Elements of one head's key and of its value."""
    head_size = header.number("embedding_length") // max(1, header.number("attention.head_count", 1))
    return header.number("attention.key_length", head_size), header.number("attention.value_length", head_size)


def memory_needed(
    header: GgufHeader,
    pools: Sequence[PoolSpec],
    *,
    kv_type: str,
    batch_tokens: int,
    store_bytes: int = 0,
    reserve_bytes: int = 0,
) -> MemoryNeed:
    """An estimate, within a few percent for the KV cells and on the safe side for the compute buffers."""
    per_token = kv_bytes_per_token(header, kv_type)
    cut = [pool.cut_to(header.number("context_length")) for pool in pools]
    needs = tuple(
        PoolNeed(
            name=pool.name,
            n_slots=pool.n_slots,
            slot_cells=pool.slot_cells,
            kv=pool.n_slots * pool.built_cells * per_token,
            compute=_compute_bytes(header, pool, batch_tokens),
            state=pool.n_slots * state_bytes(header),
        )
        for pool in cut
    )
    return MemoryNeed(header.tensor_bytes, needs, kv_type, store_bytes, reserve_bytes)


def _compute_bytes(header: GgufHeader, pool: PoolSpec, batch_tokens: int) -> int:
    """Buffers of one context: attention scores (materialised without flash attention), mask, activations and logits."""
    scores = 0 if pool.flash_attention else header.number("attention.head_count", 1)
    per_token = pool.built_cells * (scores + 1) + 4 * header.number("embedding_length")
    per_token += 2 * header.number("feed_forward_length")
    n_vocab = header.number("vocab_size", 256_000)
    logits = 2 * outputs_max(pool.n_slots, batch_tokens, n_vocab) * n_vocab
    return 4 * (batch_tokens * per_token + logits)


def outputs_max(n_slots: int, batch_tokens: int, n_vocab: int) -> int:
    """Tokens of a pass that may give logits: one of each slot, or of few rows and their guesses, or of a prompt that is scored,
    within SCORED_BYTES."""
    return min(batch_tokens, max(n_slots, min(SCORED_TOKENS, SCORED_BYTES // (4 * n_vocab))))


def available_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Memory this process may still take: the host's, and what each of its control groups has left."""
    return max(0, min([int(psutil.virtual_memory().available), *_cgroup_bytes(proc, cgroup)]))


def _cgroup_bytes(proc: Path, cgroup: Path) -> Iterator[int]:
    """What is left under the limit of each control group (version 1 or 2) that holds this process, up to the root."""
    for version, here in folders("memory", proc, cgroup):
        limit, usage, reclaimable = _FILES[version]
        limit_text, usage_text = text_of(here / limit).strip(), text_of(here / usage).strip()
        if not limit_text.isdigit() or not usage_text.isdigit():
            continue  # "max": no limit here
        statistics = text_of(here / "memory.stat").splitlines()
        cached = [line.split()[1] for line in statistics if line.startswith(f"{reclaimable} ")]
        yield int(limit_text) - int(usage_text) + sum(map(int, cached))


_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
