"""Reads a GGUF file's header, so that a bad file is one clear line before any C code sees it.

llama.cpp trusts the header it is given: a file that was cut short loads (through mmap) and then kills the process when the
missing pages are touched. The header tells exactly where the data ends, so truncation is found without reading the data.

The parser trusts nothing. Every count is bounded by the bytes that are left (each element takes at least one), strings of
keys and names have a limit, and arrays are walked, not built: garbage costs no more memory or time than the file's size.

    magic "GGUF" | version u32 | n_tensors u64 | n_keys u64 | keys ... | tensor infos ... | padding | tensor data

Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md"""

import mmap
import stat
from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from struct import Struct, calcsize, unpack_from
from typing import NamedTuple, NoReturn

MAGIC = b"GGUF"
VERSIONS = (2, 3)
KEYS_MAX = 1 << 16
TENSORS_MAX = 1 << 20
NAME_BYTES_MAX = 1 << 16
LAYERS_MAX = 512
SHARDS_MAX = 4096
TEXT_BYTES_MAX = 16 << 20
TEXTS_MAX = 1 << 24
ELEMENTS_MAX = 1 << 48
KEPT_NUMBERS_MAX = 4096
"""Arrays of numbers up to this length are kept: per-layer values. Longer ones belong to the vocabulary."""

_SUMMED = ("n_tensors", "n_params", "tensor_bytes", "file_bytes")
"""Of shards."""

GgufValue = int | float | bool | str | tuple[int | float, ...]


class ModelError(Exception):
    """A model file cannot be used. One line: the file, what is wrong, what to do."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(" ".join(f"{path}: {problem}".split()))


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What the header says; of shards, the first one's keys and the tensors of all.

    `data_end` is the size that the first file needs; `matrix_types` has the elements of all matrices by ggml_type (vectors, such
    as norms, are never quantised and do not count)."""

    path: Path
    keys: dict[str, GgufValue]
    n_tensors: int
    n_params: int
    tensor_bytes: int
    data_end: int
    file_bytes: int
    matrix_types: Counter[int] = field(default_factory=Counter)

    @property
    def architecture(self) -> str:
        return self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        value = self.keys.get(key)
        return value if isinstance(value, str) else None

    def number(self, suffix: str, default: int = 0) -> int:
        """A whole number of the architecture's own keys, such as `block_count`; for a per-layer array, the largest."""
        values = self.per_layer(suffix, 1)
        return max(values) if values else default

    def per_layer(self, suffix: str, n_layers: int) -> list[int]:
        """A number for each layer, whether the file gives one for all or an array. Empty when it gives none."""
        value = self.keys.get(f"{self.architecture}.{suffix}")
        if isinstance(value, tuple):
            return [int(number) for number in value]
        if isinstance(value, bool) or not isinstance(value, int):
            return []
        return [value] * n_layers


def read_header(path: Path) -> GgufHeader:
    """Check that `path` is a complete model and read its header, with the tensors of all its shards. Raises ModelError."""
    first = _read_file(path)
    n_shards = first.keys.get("split.count", 1)
    if not isinstance(n_shards, int) or n_shards <= 1:
        return first
    if not 1 < n_shards <= SHARDS_MAX:
        raise ModelError(path, f"is damaged (it is one of {n_shards:,} shards); download it again")
    ends = [f"-{i:05d}-of-{n_shards:05d}.gguf" for i in range(1, n_shards + 1)]
    number = first.keys.get("split.no", 0)
    if number != 0:
        end = ends[number] if isinstance(number, int) and 0 < number < n_shards else ""
        first_name = path.name.removesuffix(end).removesuffix(".gguf") + ends[0]
        raise ModelError(path, f"is a later shard of its model; name the first one ({first_name})")
    # By the name that it was called by: in a cache of links, the files behind them have other names.
    stem = path.name.removesuffix(ends[0])
    if stem == path.name:
        raise ModelError(path, f"is the first of {n_shards} shards, so its name must end in {ends[0]}; rename it back")
    shards = [first]
    for i, end in enumerate(ends[1:], start=1):
        shard = path.with_name(stem + end)
        if not shard.exists():
            which = f"{path.name} is the first of {n_shards} shards"
            raise ModelError(shard, f"does not exist; {which}, put all of them beside it")
        header = _read_file(shard)
        if (header.keys.get("split.no"), header.keys.get("split.count")) != (i, n_shards):
            raise ModelError(shard, f"is not shard {i + 1} of {n_shards}, as its name says; download it again")
        shards.append(header)
    sums = {name: sum(getattr(shard, name) for shard in shards) for name in _SUMMED}
    return replace(first, matrix_types=sum((shard.matrix_types for shard in shards), Counter()), **sums)


def _read_file(path: Path) -> GgufHeader:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelError(path, "is a directory; name the .gguf file in it")
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(path, "is not a regular file; name a .gguf file")
        if status.st_size == 0:
            raise ModelError(path, "is empty; download it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except FileNotFoundError as error:
        raise ModelError(path, "does not exist; check the path") from error
    except PermissionError as error:
        raise ModelError(path, "cannot be read by this user; change its permissions") from error
    except OSError as error:
        raise ModelError(path, f"cannot be read ({error.strerror or error}); check the path and the disk") from error


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(path, data)
    if data[:4] != MAGIC:
        raise ModelError(path, "is not a GGUF file (it does not begin with GGUF); name a .gguf model file")
    cursor.take(4)
    version = cursor.number(_U32)
    if version not in VERSIONS:
        supported = " and ".join(map(str, VERSIONS))
        raise ModelError(path, f"has GGUF version {version}, supported are {supported}; convert it again")
    n_tensors = cursor.count(TENSORS_MAX, "tensors")
    n_keys = cursor.count(KEYS_MAX, "keys")
    read = ((cursor.text(NAME_BYTES_MAX), cursor.value(cursor.number(_U32))) for _ in range(n_keys))
    keys = {name: value for name, value in read if value is not None}
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str) and not keys.get("split.no"):
        raise ModelError(path, "does not name its architecture; it is not a language model, or damaged")
    layers = keys.get(f"{architecture}.block_count", 0)
    if isinstance(layers, int) and layers > LAYERS_MAX:
        cursor.fail(f"{layers:,} layers")  # llama.cpp would not refuse: it would abort the process
    tensors = [_read_tensor(cursor) for _ in range(n_tensors)]
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        cursor.fail(f"alignment {alignment!r}")
    data_start = -(-cursor.position // alignment) * alignment
    data_end = max((data_start + tensor.offset + tensor.n_bytes for tensor in tensors), default=cursor.position)
    if data_end > len(data):
        found = f"it has {len(data):,} bytes and its header announces {data_end:,}"
        raise ModelError(path, f"is cut short: {found}; download it again")
    matrix_types: Counter[int] = Counter()
    for tensor in tensors:
        if tensor.n_dims > 1:
            matrix_types[tensor.kind] += tensor.elements
    n_params, tensor_bytes = sum(tensor.elements for tensor in tensors), sum(tensor.n_bytes for tensor in tensors)
    return GgufHeader(path, keys, n_tensors, n_params, tensor_bytes, data_end, len(data), matrix_types)


class _Tensor(NamedTuple):
    elements: int
    offset: int
    n_bytes: int
    kind: int
    n_dims: int


def _read_tensor(cursor: "_Cursor") -> _Tensor:
    """Of a type that is not known here, the size counts as 0: llama.cpp will judge."""
    name, n_dims = cursor.text(NAME_BYTES_MAX), cursor.number(_U32)
    if n_dims > 4:
        cursor.fail(f"tensor {name!r} has {n_dims} dimensions")
    elements = prod(cursor.number(_U64) for _ in range(n_dims))
    if elements > ELEMENTS_MAX:
        cursor.fail(f"tensor {name!r} has {elements:,} elements")
    kind, offset = cursor.number(_U32), cursor.number(_U64)
    block, block_bytes = TENSOR_TYPES.get(kind, (1, 0))
    return _Tensor(elements, offset, elements // block * block_bytes, kind, n_dims)


class _Cursor:
    """Takes values off the front of the file, never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self.position = 0

    def take(self, n_bytes: int) -> int:
        """Step over `n_bytes` and return where they begin."""
        start, size = self.position, len(self._data)
        if n_bytes > size - start:
            raise ModelError(self._path, f"is cut short inside its header (at byte {size:,}); download it again")
        self.position = start + n_bytes
        return start

    def fail(self, what: str) -> NoReturn:
        raise ModelError(self._path, f"is damaged ({what} at byte {self.position:,} of its header); download it again")

    def number(self, layout: Struct) -> int:
        start = self.take(layout.size)
        return int(layout.unpack_from(self._data, start)[0])

    def count(self, limit: int, what: str) -> int:
        n = self.number(_U64)
        if n > limit:
            self.fail(f"{n:,} {what}")
        return n

    def text(self, limit: int) -> str:
        n_bytes = self.count(limit, "bytes of a text")
        start = self.take(n_bytes)
        return self._data[start : start + n_bytes].decode("utf-8", "replace")

    def value(self, kind: int) -> GgufValue | None:
        """A key's value; None for an array that is not kept."""
        if kind == _STRING:
            return self.text(TEXT_BYTES_MAX)
        if kind != _ARRAY:
            value: int | float | bool = self._numbers(kind, 1)[0]
            return value
        kind = self.number(_U32)
        if kind == _STRING:
            self._skip_texts(self.count(TEXTS_MAX, "texts of an array"))
            return None
        return self._numbers(kind, self.number(_U64)) or None

    def _numbers(self, kind: int, n: int) -> tuple[int | float, ...]:
        """Of a long array none."""
        if kind not in _NUMBERS:
            self.fail(f"value type {kind}")
        start = self.take(n * calcsize(f"<{_NUMBERS[kind]}"))
        return unpack_from(f"<{n}{_NUMBERS[kind]}", self._data, start) if n <= KEPT_NUMBERS_MAX else ()

    def _skip_texts(self, n: int) -> None:
        # Hundreds of thousands in a large vocabulary, so this loop is kept tight: 0.2 µs a text.
        data, size, position, length = self._data, len(self._data), self.position, _U64.unpack_from
        for _ in range(n):
            if position + 8 > size:
                position = size + 1
                break
            position += 8 + length(data, position)[0]
        self.take(position - self.position)


_U32 = Struct("<I")
_U64 = Struct("<Q")
_STRING = 8
_ARRAY = 9
# fmt: off
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Numbers and booleans, as `struct` writes them."""

TENSOR_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66),
    17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136),
    24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54),
    35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18), 42: (64, 18),
}
# fmt: on
"""Elements and bytes of one block, by ggml_type."""
