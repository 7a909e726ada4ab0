"""What a model needs in memory, and what this host has."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from poise.llama.files.gguf import GgufHeader, read_header
from poise.llama.files.memory import PoolSpec, available_bytes, can_quantise_kv, kv_bytes_per_token, memory_needed, state_bytes
from tests.llama.gguf_files import TINY_KEYS, KeyValue, gguf_bytes, write_gguf
from tests.llama.groups import fake_host

POOLS = [PoolSpec("short", 10, 1000), PoolSpec("long", 2, 4096)]
GIB = 1 << 30


def header(tmp_path: Path, **keys: KeyValue) -> GgufHeader:
    named = {name.replace("__", "."): value for name, value in keys.items()}
    return read_header(write_gguf(tmp_path / "x.gguf", gguf_bytes({**TINY_KEYS, **named})))


def test_kv_bytes_follow_the_heads_of_each_layer(tmp_path: Path) -> None:
    """2 and 1 KV heads of 16 + 16 elements; quantised types take their blocks' share."""
    assert kv_bytes_per_token(header(tmp_path), "f16") == 3 * 32 * 2
    assert kv_bytes_per_token(header(tmp_path), "q8_0") == 3 * 32 * 34 // 32
    assert kv_bytes_per_token(header(tmp_path), "q4_0") == 3 * 32 * 18 // 32
    uneven = header(tmp_path, llama__attention__key_length=32, llama__attention__value_length=8)
    assert kv_bytes_per_token(uneven, "f16") == 3 * 40 * 2
    same = header(tmp_path, llama__attention__head_count_kv=2)
    assert kv_bytes_per_token(same, "f16") == 2 * 2 * 32 * 2


def test_slots_are_rounded_up_and_cut_to_the_trained_context(tmp_path: Path) -> None:
    """As they will be built: 1,024 cells for 1,000, and 2,048 where the model knows no more."""
    need = memory_needed(header(tmp_path), POOLS, kv_type="f16", batch_tokens=512)
    assert need.kv == (10 * 1024 + 2 * 2048) * 3 * 32 * 2
    assert [(pool.name, pool.n_slots, pool.slot_cells) for pool in need.pools] == [("short", 10, 1000), ("long", 2, 2048)]
    assert need.weights == header(tmp_path).tensor_bytes
    assert need.total == need.weights + need.kv + need.compute


def test_the_store_and_the_reserve_count(tmp_path: Path) -> None:
    """The store is counted full."""
    bare = memory_needed(header(tmp_path), POOLS, kv_type="f16", batch_tokens=512)
    need = memory_needed(header(tmp_path), POOLS, kv_type="f16", batch_tokens=512, store_bytes=5, reserve_bytes=7)
    assert (need.store, need.reserve, need.total) == (5, 7, bare.total + 12)


def test_cells_are_quantised_in_whole_blocks(tmp_path: Path) -> None:
    """Heads of 16 elements are half a block."""
    assert not can_quantise_kv(header(tmp_path))
    assert can_quantise_kv(header(tmp_path, llama__attention__key_length=64, llama__attention__value_length=32))
    assert not can_quantise_kv(header(tmp_path, llama__attention__key_length=64))


def test_attention_scores_count_only_without_flash_attention(tmp_path: Path) -> None:
    """They are the largest compute buffer; an undecided pool is reckoned with them."""

    def compute(flash: bool | None) -> int:
        pools = [PoolSpec("long", 2, 2048, flash)]
        return memory_needed(header(tmp_path), pools, kv_type="f16", batch_tokens=512).compute

    assert compute(None) == compute(False) == compute(True) + 4 * 512 * 2048 * 4


def test_available_memory_is_the_hosts_without_limits(tmp_path: Path) -> None:
    """No control groups, or groups without a limit."""
    free = psutil.virtual_memory().available
    for groups, files in (("", {}), ("0::/app\n", {"app/memory.max": "max\n", "app/memory.current": "5\n"})):
        proc, cgroup = fake_host(tmp_path / str(len(groups)), groups, files)
        assert abs(available_bytes(proc, cgroup) - free) < GIB


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        (
            "0::/app/inner\n",
            {
                "app/inner/memory.max": "5000",
                "app/inner/memory.current": "1000",
                "app/memory.max": "4000",
                "app/memory.current": "3000",
                "app/memory.stat": "anon 1\ninactive_file 500\n",
            },
            1500,
        ),
        ("0::/gone\n", {"memory.max": "700", "memory.current": "100"}, 600),
        (
            "4:cpu,memory:/app\n0::/\n",
            {
                "memory/app/memory.limit_in_bytes": "900",
                "memory/app/memory.usage_in_bytes": "1000",
                "memory/app/memory.stat": "total_inactive_file 300\n",
            },
            200,
        ),
        ("0::/\n", {"memory.max": "700", "memory.current": "1000"}, 0),
    ],
    ids=["version 2, tightest ancestor", "version 2, seen from inside", "version 1", "over the limit"],
)
def test_available_memory_respects_control_groups(tmp_path: Path, groups: str, files: dict[str, str], expected: int) -> None:
    """Both versions, every ancestor; file pages that can be dropped count as free."""
    assert available_bytes(*fake_host(tmp_path, groups, files)) == expected


def model_of(tmp_path: Path, architecture: str, **keys: KeyValue) -> GgufHeader:
    """A header with the keys of its own architecture and nothing else."""
    own = {f"{architecture}.{name.replace('__', '.')}": value for name, value in keys.items()}
    return read_header(write_gguf(tmp_path / "h.gguf", gguf_bytes({"general.architecture": architecture, **own})))


SSM: dict[str, KeyValue] = {"ssm__conv_kernel": 4, "ssm__inner_size": 128, "ssm__state_size": 16}
HEADS: dict[str, KeyValue] = {"embedding_length": 64, "attention__head_count": 4}
MAMBA_STATE = 3 * 128 + 128 * 16
GROUPED_STATE = 3 * (128 + 2 * 2 * 16) + 128 * 16


@pytest.mark.parametrize(
    ("architecture", "keys", "kv_heads", "state"),
    [
        ("mamba", {"block_count": 3, "embedding_length": 64, **SSM}, 0, 3 * MAMBA_STATE),
        ("mamba2", {"block_count": 3, "embedding_length": 64, "ssm__group_count": 2, **SSM}, 0, 3 * GROUPED_STATE),
        ("rwkv6", {"block_count": 2, "embedding_length": 64, "wkv__head_size": 16}, 0, 2 * 64 * (2 + 16)),
        (
            "arwkv7",
            {"block_count": 2, "embedding_length": 64, "wkv__head_size": 16, "token_shift_count": 1},
            0,
            2 * 64 * (1 + 16),
        ),
        ("jamba", {"block_count": 4, **HEADS, "attention__head_count_kv": [0, 0, 2, 0], **SSM}, 2, 3 * MAMBA_STATE),
        (
            "granitehybrid",
            {"block_count": 3, **HEADS, "attention__head_count_kv": [0, 1, 0], "ssm__group_count": 2, **SSM},
            1,
            2 * GROUPED_STATE,
        ),
        ("lfm2", {"block_count": 3, **HEADS, "attention__head_count_kv": [0, 2, 0], "shortconv__l_cache": 3}, 2, 2 * 64 * 2),
        (
            "nemotron_h",
            {"block_count": 4, **HEADS, "attention__head_count_kv": [0, 0, 2, 0], "feed_forward_length": [0, 9, 0, 0], **SSM},
            2,
            2 * MAMBA_STATE,
        ),
        ("falcon-h1", {"block_count": 2, **HEADS, "attention__head_count_kv": 2, **SSM}, 4, 2 * MAMBA_STATE),
        ("qwen3next", {"block_count": 8, **HEADS, "attention__head_count_kv": 2, **SSM}, 4, 6 * MAMBA_STATE),
        (
            "qwen35",
            {"block_count": 6, **HEADS, "attention__head_count_kv": 2, "full_attention_interval": 3, **SSM},
            4,
            4 * MAMBA_STATE,
        ),
        (
            "odd",
            {"block_count": 3, **HEADS, "attention__head_count_kv": 2, "attention__recurrent_layers": [1, 0, 1], **SSM},
            2,
            2 * MAMBA_STATE,
        ),
        (
            "kimi-linear",
            {
                "block_count": 2, **HEADS, "attention__head_count_kv": [0, 1], "kda__head_dim": 16, "ssm__conv_kernel": 4,
            },
            1,
            4 * 16 * (3 * 3 + 16),
        ),
        ("gemma3n", {"block_count": 5, **HEADS, "attention__head_count_kv": 1, "attention__shared_kv_layers": 2}, 3, 0),
        ("gemma3", {"block_count": 6, **HEADS, "attention__head_count_kv": 1, "attention__sliding_window": 512}, 6, 0),
    ],
)  # fmt: skip
def test_only_layers_that_attend_have_cells(
    tmp_path: Path, architecture: str, keys: dict[str, KeyValue], kv_heads: int, state: int
) -> None:
    """The others have a state for each sequence, which does not grow with its length."""
    model = model_of(tmp_path, architecture, **keys)
    head = 16 + 16 if "attention__head_count" in keys else 0
    assert kv_bytes_per_token(model, "f16") == kv_heads * head * 2
    assert state_bytes(model) == 4 * state
    need = memory_needed(model, POOLS, kv_type="f16", batch_tokens=512)
    assert [pool.state for pool in need.pools] == [10 * 4 * state, 2 * 4 * state]
    assert need.kv == (10 * 1024 + 2 * 4096) * kv_heads * head * 2
    assert need.total == need.weights + need.kv + need.state + need.compute
