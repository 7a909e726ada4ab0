"""Memory of this host and of this process."""

import psutil


def free_bytes() -> int:
    """What the host has left."""
    return int(psutil.virtual_memory().available)


def own_rss_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)
