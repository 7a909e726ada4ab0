"""Writes small GGUF files for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

KeyValue = int | float | bool | str | Sequence[int] | Sequence[str]

TINY_KEYS: Mapping[str, KeyValue] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.file_type": 3,
    "llama.context_length": 2048,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 1],
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": ["a", "b", "c"],
}
TINY_TENSORS = (("token_embd.weight", (64, 3), 1), ("output.weight", (64, 32), 8))
"""Name, dimensions and ggml_type: F16 and Q8_0."""

TYPE_BYTES = {0: 4.0, 1: 2.0, 8: 34 / 32}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def key(name: str, value: KeyValue) -> bytes:
    return text(name) + _typed(value)


def _typed(value: KeyValue) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(text(str(item)) for item in value)
    return struct.pack("<IIQ", 9, 5, len(value)) + b"".join(struct.pack("<i", item) for item in value)


def gguf_bytes(
    keys: Mapping[str, KeyValue] = TINY_KEYS,
    tensors: Sequence[tuple[str, tuple[int, ...], int]] = TINY_TENSORS,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    with_data: bool = True,
) -> bytes:
    """A whole file: header, and zeros as data."""
    header = magic + struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    )
    header += b"".join(key(name, value) for name, value in keys.items())
    offset = 0
    for name, dimensions, kind in tensors:
        header += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        header += struct.pack("<IQ", kind, offset)
        n_bytes = 1.0
        for dimension in dimensions:
            n_bytes *= dimension
        offset += -(-int(n_bytes * TYPE_BYTES.get(kind, 1.0)) // 32) * 32
    header += bytes(-len(header) % 32)
    return header + bytes(offset if with_data else 0)


def write_gguf(path: Path, data: bytes | None = None) -> Path:
    path.write_bytes(gguf_bytes() if data is None else data)
    return path
