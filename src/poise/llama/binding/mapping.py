"""Memory that is mapped: of copies of KV state, and of files whose pages can be read again.

Memory for copies of KV state goes back to the system when it is freed.

States take from kilobytes to a slot's whole size and come and go in any order. In the C library's heap they leave holes that
later ones do not fit: beside 512 MiB of states a process grew by 80 to 280 MiB that its books did not show. A mapping of its
own for each leaves none. Huge pages, where the system gives them to who asks, make that 2.7 times cheaper."""

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from poise.engine.ports import RunnerError

Bytes = npt.NDArray[np.uint8]


def allocate(n_bytes: int) -> Bytes:
    """Zeroed private memory of shape [n_bytes], unmapped with the last view of it. Raises RunnerError if there is none."""
    try:
        # What Python maps by default is shared: files in memory, which are slower and are not counted as anonymous.
        mapped = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, MemoryError, OverflowError) as error:
        raise RunnerError(f"no memory for {n_bytes} bytes of KV state") from error
    if sys.platform == "linux":
        with suppress(OSError):  # A kernel without them: small pages will do.
            mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8)


BLOCK_SPARE_BYTES = 4 << 20
"""So much more than its KV cells a pool's block of memory may have."""
PAGE_WORDS = mmap.PAGESIZE // 8


def give_back(path: Path, blocks: Sequence[int] = (), maps: Path = Path("/proc/self/maps")) -> int:
    """Have the system forget the pages of this process that show a file, what the heap has free, and of the C library's blocks
    of about these sizes the pages that are all zeros. Files are read again, from the system's cache or the disk, by whoever comes
    to them. Nobody may write to the blocks meanwhile. Returns the bytes that were let go."""
    library, n_bytes = ctypes.CDLL(None), 0
    with suppress(OSError, AttributeError, ValueError):  # another system: there everything stays as it is

        def forget(begin: int, end: int) -> int:
            failed = library.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
            return 0 if failed else end - begin

        name = str(path.resolve())
        for line in maps.read_text().splitlines():
            span, flags, _, _, _, *shown = line.split(maxsplit=5)
            begin, end = (int(part, 16) for part in span.split("-"))
            if shown == [name] and "w" not in flags:  # what was written to a private copy would be lost
                n_bytes += forget(begin, end)
            elif not shown and flags == "rw-p" and blocks and end - begin >= min(blocks):
                n_bytes += sum(forget(*zeros) for block in _blocks(begin, end, blocks) for zeros in _zeros(*block))
        library.malloc_trim(0)
    return n_bytes


def _words(begin: int, end: int) -> npt.NDArray[np.uint64]:
    return np.frombuffer(memoryview((ctypes.c_char * (end - begin)).from_address(begin)).cast("B"), np.uint64)


def _blocks(begin: int, end: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The whole pages of blocks of these sizes that glibc has mapped by themselves: in the second word of each stands its length,
    and the bit of a mapping. Mappings that lie side by side are shown as one."""
    heads = _words(begin, end)[1::PAGE_WORDS]
    for page in np.flatnonzero((heads & 7) == 2):
        start, length = begin + int(page) * mmap.PAGESIZE, int(heads[page]) & ~7
        wanted = any(size <= length <= size + BLOCK_SPARE_BYTES for size in sizes)
        if wanted and length % mmap.PAGESIZE == 0 and start + length <= end:
            yield start + mmap.PAGESIZE, start + length


def _zeros(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Runs of pages of nothing but zeros: what the system gives whoever asks for them again."""
    used = _words(begin, end).reshape(-1, PAGE_WORDS).any(axis=1)
    edges = np.flatnonzero(np.diff(np.concatenate(([True], used, [True])).astype(np.int8)))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        yield begin + int(first) * mmap.PAGESIZE, begin + int(last) * mmap.PAGESIZE
