"""What every view of a request has, an operator's and its own caller's: who and what it is, its class, its state, its age."""

from __future__ import annotations

import time
from typing import Any

from poise.gateway.records.changes import RequestState
from poise.gateway.records.moments import ChoiceRecord
from poise.gateway.records.record import Record
from poise.scheduler.request import RequestClass


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
        "finish_reason": choice.finish_reason,
        "outcome": choice.outcome,
    }
