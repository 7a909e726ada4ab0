"""What happened to a request, as the API tells it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from poise.gateway.record import Record


class RequestMoment(BaseModel):
    """Something that happened to a request, with what else is known of it."""

    what: str
    ms: int
    tokens: int


def timeline_of(record: Record) -> list[dict[str, Any]]:
    """What happened to it, in ms since its arrival, as the API tells it."""
    arrived_s = record.origin.arrived_s
    return [
        {"what": moment.what, "ms": int((moment.at_s - arrived_s) * 1000), "tokens": moment.n_tokens}
        | ({} if moment.choice is None else {"choice": moment.choice})
        | moment.detail
        for moment in record.timeline
    ]
