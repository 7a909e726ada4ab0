"""What happened to a request, as the API tells it."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from poise.gateway.records.record import Record


class RequestMoment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a request, with what else is known of it."""

    what: str
    ms: int
    tokens: int
    choice: int | UnsetType = UNSET
    turns: int | UnsetType = UNSET
    position: int | UnsetType = UNSET
    eta_ms: int | UnsetType = UNSET
    pool: str | UnsetType = UNSET
    cached_tokens: int | UnsetType = UNSET
    wait_ms: int | UnsetType = UNSET
    computed_tokens: int | UnsetType = UNSET
    chunks: int | UnsetType = UNSET
    pass_us: int | UnsetType = UNSET
    beside_tokens: int | UnsetType = UNSET
    until_ms: int | UnsetType = UNSET
    why: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET


def timeline_of(record: Record) -> list[RequestMoment]:
    """What happened to it, in ms since its arrival, as the API tells it."""
    arrived_s = record.origin.arrived_s
    return [
        RequestMoment(
            what=moment.what,
            ms=int((moment.at_s - arrived_s) * 1000),
            tokens=record.tokens_at(moment.n_entries),
            choice=UNSET if moment.choice is None else moment.choice,
            **moment.detail,
        )
        for moment in record.timeline
    ]
