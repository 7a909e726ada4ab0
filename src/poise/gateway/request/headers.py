"""The headers that are poise's own: their names, and when the queue's are sent."""

import re
from collections.abc import MutableMapping, Sequence

DETACH, DATA_CLASS, NO_FALLBACK = "X-Poise-Detach", "X-Poise-Data-Class", "X-Poise-No-Fallback"
"""Sent by clients."""
BACKEND, ROUTE_REASON, FALLBACK_FROM = "X-Poise-Backend", "X-Poise-Route-Reason", "X-Poise-Fallback-From"
"""Who answers: `local`, or a section of `backends`, with `cloud:` before it where the request leaves this host; why; and who was
asked before, without an answer."""
RESPONSE_ID = "X-Poise-Response-Id"
QUEUE_POSITION, QUEUE_ETA = "X-Poise-Queue-Position", "X-Poise-Queue-Eta-Ms"
CONTEXT = "X-Poise-Context"
"""What was left out of a conversation."""
WARNING = "X-Poise-Warning"
IGNORED = "X-Poise-Ignored"
"""Fields of the request that have no effect."""

LONG_WAIT_US = 500_000
"""A client whose request will wait at least this long in the queue is sent its position and the estimate."""

_NAMES_MAX, _NAME_CHARS_MAX = 20, 48
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\[\]-]")


def warn(headers: MutableMapping[str, str], warning: str) -> None:
    """Say one thing more."""
    said = headers.get(WARNING)
    headers[WARNING] = f"{said}; {warning}" if said else warning


def list_ignored(names: Sequence[str]) -> str:
    """The value of IGNORED: the first names, cut and without what has a meaning in headers, and how many more there are."""
    shown = [_UNSAFE.sub("?", name[:_NAME_CHARS_MAX]) for name in names[:_NAMES_MAX]]
    more = [f"{len(names) - _NAMES_MAX} more"] if len(names) > _NAMES_MAX else []
    return ", ".join(shown + more)
