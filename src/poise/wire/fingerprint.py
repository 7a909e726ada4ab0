"""What tells one model file from another, cheaply: size, metadata with the vocabulary, and samples of the weights.

A server that goes on after its engine was lost must go on with the very model whose vocabulary it speaks: other ids mean other
text, and nobody would notice. Modification time and inode are no part of it: a file that was put back is the same one again."""

import hashlib
from pathlib import Path

MODEL_CHANGED = "the model file changed; restart the server to use the new one, or put the former one back"

HEAD_BYTES = 32 << 20
"""The metadata of a vocabulary of 250,000 tokens takes about half of that."""
N_SAMPLES, SAMPLE_BYTES = 64, 1 << 16


def is_other(path: Path, expected: str) -> bool:
    """Whether it is not the file with this fingerprint; any file is, where none is expected. Raises OSError."""
    return bool(expected) and fingerprint(path) != expected


def fingerprint(path: Path) -> str:
    """Of the file as it is now. Reads at most 36 MiB. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        file.seek(0)
        digest.update(file.read(HEAD_BYTES))
        if size > HEAD_BYTES:
            for i in range(N_SAMPLES):
                file.seek(HEAD_BYTES + (size - HEAD_BYTES) * i // N_SAMPLES)
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
