"""Memory of this host and of this process; and freed memory that the C library keeps, given back to the system.

glibc returns what is free at the end of its heap, and nothing that lies between blocks in use. Bodies of megabytes that come and
go beside small things that stay leave holes of megabytes: after a siege of five minutes 50 MiB of 110. They are used again, but
by nobody else, and what comes next does not always fit into them.

With `M_MMAP_THRESHOLD` each large block would have a mapping of its own and leave none, but the system would have to make its
pages anew each time: to put a body of three megabytes together would take ten times as long.

Giving back runs in the event loop. In a thread it would hold the loop up as long, because the heap is locked meanwhile: 0.1 ms
where there is nothing to give, 2 ms for 120 MiB. Holes come back within ten seconds of such a load, so a minute would be too long
to wait."""

import ctypes
from collections.abc import Callable

import psutil


def free_bytes() -> int:
    """What the host has left."""
    return int(psutil.virtual_memory().available)


def own_rss_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


TRIM_EVERY_S = 5.0
KEPT_BYTES = 1 << 20
"""At the end of the heap so much stays, for what comes next."""


def _trim() -> Callable[[int], int] | None:
    """glibc's `malloc_trim`; None on a system with another C library."""
    function = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if function is not None:
        function.argtypes, function.restype = [ctypes.c_size_t], ctypes.c_int
    return function


_malloc_trim = _trim()


def give_back() -> None:
    """Every whole page of the heap in which nothing is in use goes back to the system."""
    if _malloc_trim is not None:
        _malloc_trim(KEPT_BYTES)
