"""What every view of a request has, an operator's and its own caller's: who and what it is, its class, its state, its age, what
happened to it, and why it took as long as it did."""

import time
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from poise.gateway.api.openai.completion_types import finish_reason
from poise.gateway.explain.facts import ExplanationFigures, Facts
from poise.gateway.explain.words import sentences_of, verdict_of
from poise.gateway.records.changes import RequestState
from poise.gateway.records.moments import ChoiceRecord
from poise.gateway.records.record import Record
from poise.scheduler.request import RequestClass


class RequestMoment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a request, with what else is known of it."""

    what: str
    ms: int
    tokens: int
    choice: int | UnsetType = UNSET
    turns: int | UnsetType = UNSET
    position: int | UnsetType = UNSET
    eta_ms: int | UnsetType = UNSET
    backend: str | UnsetType = UNSET
    pool: str | UnsetType = UNSET
    cached_tokens: int | UnsetType = UNSET
    wait_ms: int | UnsetType = UNSET
    computed_tokens: int | UnsetType = UNSET
    chunks: int | UnsetType = UNSET
    pass_us: int | UnsetType = UNSET
    beside_tokens: int | UnsetType = UNSET
    until_ms: int | UnsetType = UNSET
    kind: str | UnsetType = UNSET
    why: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    outcome: str | UnsetType = UNSET


def view_of(record: Record) -> dict[str, Any]:
    """The fields of a request, without its text."""
    origin = record.origin
    return {
        "id": record.response_id,
        "request_id": origin.request_id,
        "class_": (RequestClass.BACKGROUND if record.downgraded else origin.request_class).value,
        "state": record.state,
        "age_ms": int((time.perf_counter() - origin.arrived_s) * 1000),
    }


def choice_view_of(record: Record, choice: ChoiceRecord) -> dict[str, Any]:
    """The fields of one choice. One that was still live when its request ended has ended with it."""
    return {
        "index": choice.index,
        "state": choice.state if choice.outcome is None and not record.is_ended else RequestState.ENDED,
        "finish_reason": None if choice.finish_reason is None else finish_reason(choice.finish_reason),
        "outcome": choice.outcome,
    }


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


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["explanation"] = "explanation"
    verdict: str | None
    sentences: list[str]
    figures: ExplanationFigures
    timeline: list[RequestMoment]


def explanation_of(facts: Facts) -> Explanation:
    """The answer."""
    return Explanation(
        id=facts.record.response_id,
        verdict=verdict_of(facts),
        sentences=sentences_of(facts),
        figures=facts.figures,
        timeline=timeline_of(facts.record),
    )
