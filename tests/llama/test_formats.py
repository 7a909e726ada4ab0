"""Which models are offered another weight format."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from poise.llama.files.formats import FORMATS, candidates, main_type, not_applicable
from poise.llama.files.gguf import GgufHeader, read_header
from tests.llama.gguf_files import TINY_KEYS, gguf_bytes, write_gguf
from tests.llama.test_gguf import shards

Q4_0, Q4_1, Q8_0, Q2_K, IQ1_S, F16, F32, BF16 = 2, 3, 8, 10, 19, 1, 0, 30
COMPUTES_BF16 = "CPU : AVX512_VNNI = 1 | AVX512_BF16 = 1 | LLAMAFILE = 1 | "
CONVERTS_BF16 = "CPU : AVX2 = 1 | AVX512_BF16 = 0 | LLAMAFILE = 1 | "


def header(tmp_path: Path, *kinds: int, **keys: int) -> GgufHeader:
    """A file whose matrices have these types, the first one most of the weights, and a norm."""
    tensors = [(f"m{i}", (256, 64 if i == 0 else 8), kind) for i, kind in enumerate(kinds)]
    data = gguf_bytes(keys={**TINY_KEYS, **keys}, tensors=[*tensors, ("norm", (256,), F32)])
    return read_header(write_gguf(tmp_path / "model.gguf", data + bytes(1 << 18)))


@pytest.mark.parametrize(
    ("kinds", "gpu_layers", "why"),
    [
        ((Q4_1, Q8_0), 0, ""),
        ((F16,), 0, ""),
        ((Q4_1,), 10, "GPU"),
        ((Q4_0, Q8_0), 0, "Q4_0 already"),
        ((Q2_K, Q8_0), 0, r"2\.6 bits"),
        ((IQ1_S,), 0, "not converted"),
        ((99,), 0, "not converted"),
    ],
)
def test_what_is_left_as_it_is(tmp_path: Path, kinds: tuple[int, ...], gpu_layers: int, why: str) -> None:
    """Few bits, unknown types, what is in the format already, and whatever a GPU computes."""
    answer = not_applicable(header(tmp_path, *kinds), gpu_layers)
    assert re.search(why, answer) if why else answer == ""


def test_a_split_model_is_left_as_it_is(tmp_path: Path) -> None:
    """Its other files would be missing beside the new one."""
    assert "several files" in not_applicable(read_header(shards(tmp_path)[0]), 0)
    assert not_applicable(header(tmp_path, Q4_1, **{"split.count": 1}), 0) == ""


def test_norms_do_not_count_and_q8_0_is_not_made_of_q8_0(tmp_path: Path) -> None:
    """The type is that of most weights in matrices."""
    source = header(tmp_path, Q8_0)
    assert source.matrix_types == {Q8_0: 256 * 64}
    assert main_type(source) == Q8_0
    assert candidates(source, COMPUTES_BF16) == (FORMATS[0], *FORMATS[2:])
    assert candidates(header(tmp_path, Q4_1, Q8_0), COMPUTES_BF16) == FORMATS
    assert main_type(header(tmp_path)) == -1


def test_bf16_is_made_where_the_cpu_computes_it(tmp_path: Path) -> None:
    """Others convert each weight as they go; and not of a file that has it."""
    assert candidates(header(tmp_path, Q4_1), CONVERTS_BF16) == FORMATS[1:]
    assert candidates(header(tmp_path, Q4_1), "") == FORMATS[1:]
    assert candidates(header(tmp_path, BF16), COMPUTES_BF16) == FORMATS[1:]
