"""The headers that are poise's own: their names, and when the queue's are sent."""

from __future__ import annotations

from collections.abc import MutableMapping

DETACH = "X-Poise-Detach"
"""Sent by clients."""
RESPONSE_ID = "X-Poise-Response-Id"
QUEUE_POSITION, QUEUE_ETA = "X-Poise-Queue-Position", "X-Poise-Queue-Eta-Ms"
CONTEXT = "X-Poise-Context"
"""What was left out of a conversation."""
WARNING = "X-Poise-Warning"
ANSWERED = (CONTEXT, QUEUE_ETA, QUEUE_POSITION, RESPONSE_ID, WARNING)
"""Those that are sent to clients."""

LONG_WAIT_US = 500_000
"""A client whose request will wait at least this long in the queue is sent its position and the estimate."""


def warn(headers: MutableMapping[str, str], warning: str) -> None:
    """Say one thing more."""
    said = headers.get(WARNING)
    headers[WARNING] = f"{said}; {warning}" if said else warning
