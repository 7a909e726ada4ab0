"""The weight formats that poise may make of a model: few, named, and each one fast on a CPU.

ggml computes different formats at very different speeds. For Q4_0 and Q8_0 it has matrix kernels that read several rows or
columns at once; for Q4_1, Q5_1 and others only a dot product for each output. BF16 has no scales to apply: a CPU with
instructions for it computes it fastest where rows are computed together, and a lone row slower, because there is more to read.
So a file can become faster in another format, also in a larger one."""

from dataclasses import dataclass

from poise.llama.files.gguf import GgufHeader

Q4_0, Q8_0, BF16 = 2, 8, 30
"""ggml_type."""
_FTYPE_Q4_0, _FTYPE_Q8_0, _FTYPE_BF16 = 2, 7, 32
"""llama_ftype."""

BITS_MIN = 4.0
"""Sources with fewer bits a weight are made for little memory, which every format here would undo."""
_BITS = {
    0: 32.0, 1: 16.0, 2: 4.5, 3: 5.0, 6: 5.5, 7: 6.0, 8: 8.5, 10: 2.6, 11: 3.4, 12: 4.5, 13: 5.5, 14: 6.6, 20: 4.5, 23: 4.25,
    30: 16.0,
}  # fmt: skip
"""Bits of a weight, by the ggml_type that most weights have; others are not known well enough to be converted."""


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A format: the llama_ftype of its matrices, and the ggml_type of token embeddings and output head."""

    name: str
    ftype: int
    embedding_type: int
    bits: float

    def estimated_bytes(self, header: GgufHeader) -> int:
        """At most what a file of this format takes: its weights, and what else the source's file holds."""
        weights = sum(header.matrix_types.values())
        vectors = 4 * (header.n_params - weights)
        return int(weights * self.bits / 8) + vectors + header.file_bytes - header.tensor_bytes


FORMATS = (
    WeightFormat("bf16", _FTYPE_BF16, BF16, 16.0),
    WeightFormat("q8_0", _FTYPE_Q8_0, Q8_0, 8.5),
    WeightFormat("q4_0 with q8_0 head", _FTYPE_Q4_0, Q8_0, 8.5),
    WeightFormat("q4_0", _FTYPE_Q4_0, Q4_0, 4.5),
)
"""From the most exact to the smallest."""


def main_type(header: GgufHeader) -> int:
    """The ggml_type that most weights have, -1 without any."""
    return max(header.matrix_types, key=lambda kind: header.matrix_types[kind], default=-1)


def candidates(header: GgufHeader, system_info: str) -> tuple[WeightFormat, ...]:
    """What could be made of the model and differs from what it is. `system_info`: what llama.cpp says of the CPU."""
    kinds = set(header.matrix_types)
    without = {kind for kind in (BF16, Q8_0) if kinds == {kind}}
    if "AVX512_BF16 = 1" not in system_info:
        without.add(BF16)  # computed by conversion: slower than what it is made of
    return tuple(known for known in FORMATS if known.embedding_type not in without or known.ftype == _FTYPE_Q4_0)


def not_applicable(header: GgufHeader, gpu_layers: int) -> str:
    """Why the file has to be served as it is; empty if another format may be tried."""
    kind = main_type(header)
    if gpu_layers:
        return "layers are kept on a GPU (engine.gpu_layers), and the formats are chosen for a CPU"
    if header.keys.get("split.count", 1) not in (0, 1):
        return "the model is split over several files"
    if kind not in _BITS:
        return f"most weights have a type that is not converted (ggml_type {kind})"
    if _BITS[kind] < BITS_MIN:
        return f"most weights have {_BITS[kind]} bits; only sources of {BITS_MIN:.0f} bits and more are converted"
    if kind == Q4_0:
        return "most weights are Q4_0 already"
    return ""
