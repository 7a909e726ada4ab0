"""How many files this process may open."""

from __future__ import annotations

import resource

UNLIMITED = 1 << 20
"""As good as no limit."""


def raise_limit() -> int:
    """Open as many files as the system lets this process; returns how many. Its children inherit that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else min(hard, UNLIMITED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft  # a system with a lower limit of its own; what there is, is enough to start
        return wanted
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft
