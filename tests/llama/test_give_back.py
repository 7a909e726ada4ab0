"""Pages that are given back: those of a file, and zeros in large blocks; whatever is used stays what it was."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from poise.llama.binding.mapping import give_back

SIZE = 40 << 20


def resident(path: Path | None = None) -> int:
    """Bytes of this process in memory: all of them, or what is shown of a file."""
    found, n_bytes = path is None, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            found = path is None or line.endswith(str(path))
        elif line.startswith("Rss:") and found:
            n_bytes += int(line.split()[1]) << 10
    return n_bytes


def test_a_files_pages_are_read_again(tmp_path: Path) -> None:
    """What was in them is there again, and no other file is concerned."""
    file, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    for path in (file, other):
        path.write_bytes(bytes(range(256)) * 4096)
    with file.open("rb") as opened, other.open("rb") as beside:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        kept = mmap.mmap(beside.fileno(), 0, access=mmap.ACCESS_READ)
        assert mapped[:] == kept[:]
        assert resident(file) == resident(other) == 1 << 20
        assert give_back(file) == 1 << 20
        assert (resident(file), resident(other)) == (0, 1 << 20)
        assert mapped[:] == kept[:]


@pytest.mark.parametrize("alignment", [0, 64])
def test_zeros_in_a_block_are_given_back(tmp_path: Path, alignment: int) -> None:
    """Only in blocks of the wanted size, and nothing that is used is touched."""
    library = ctypes.CDLL(None)
    library.malloc.restype = library.aligned_alloc.restype = ctypes.c_void_p
    library.malloc.argtypes, library.aligned_alloc.argtypes = [ctypes.c_size_t], [ctypes.c_size_t] * 2
    library.free.argtypes = [ctypes.c_void_p]
    sizes = (SIZE, SIZE + (16 << 20))
    blocks = [library.aligned_alloc(alignment, n) if alignment else library.malloc(n) for n in sizes]
    try:
        for block in blocks:
            ctypes.memset(block, 0, SIZE)
            ctypes.memset(block + (8 << 20), 7, 1 << 20)
        before = resident()
        freed = give_back(tmp_path / "none", [SIZE])
        assert SIZE - (2 << 20) < freed <= SIZE
        assert before - resident() > SIZE - (4 << 20)
        for block in blocks:
            found = ctypes.string_at(block, SIZE)
            assert found[8 << 20 : 9 << 20] == b"\x07" * (1 << 20)
            assert not found[: 8 << 20].strip(b"\0")
            assert not found[9 << 20 :].strip(b"\0")
    finally:
        for block in blocks:
            library.free(block)
