"""How many files this process may open, and how many of them may be connections."""

import resource

from poise.config import ServerSettings

RESERVE = 128
"""Kept for the server itself: its engine, logs, files that are read from /proc each second, the audit log."""
RESERVE_SHARE = 4
"""Of few files a fourth is kept."""
PER_CONNECTION = 2
"""A connection, and the file that it may be sent."""
CONNECTIONS_PER_REQUEST = 4
"""Where `server.connections_total` leaves it open: most connections of a pool are idle."""
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


def connections_wanted(server: ServerSettings) -> int:
    return server.connections_total or CONNECTIONS_PER_REQUEST * server.max_connections


def connections_max(wanted: int, files: int) -> int:
    """Of `wanted` connections as many as `files` open files leave room for; at least one."""
    return max(1, min(wanted, (files - min(RESERVE, files // RESERVE_SHARE)) // PER_CONNECTION))
