"""Memory for copies of KV state, which goes back to the system when it is freed.

States take from kilobytes to a slot's whole size and come and go in any order. In the C library's heap they leave holes that
later ones do not fit: beside 512 MiB of states a process grew by 80 to 280 MiB that its books did not show. A mapping of its
own for each leaves none. Huge pages, where the system gives them to who asks, make that 2.7 times cheaper."""

import mmap
import sys
from contextlib import suppress

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
