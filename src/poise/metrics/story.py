"""What happened to one API request, counted by the metrics and traced once when it has ended. No text.

Times are of the gateway's clock `time.perf_counter`."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from poise.scheduler.request import FinishReason


class Outcome(StrEnum):
    """How a choice ended that the engine had taken."""

    STOP = FinishReason.STOP.value
    LENGTH = FinishReason.LENGTH.value
    EXPIRED = FinishReason.EXPIRED.value
    FAILED = FinishReason.FAILED.value
    CANCELLED = "cancelled"
    """It was no longer wanted."""
    READER_TIMEOUT = "reader_timeout"
    """Its client took nothing of its stream for as long as it may."""
    ENGINE_LOST = "engine_lost"
    """No engine could go on with it."""
    QUARANTINED = "quarantined"
    """Engines died computing it."""
    SERVER_STOPPING = "server_stopping"
    """It was live when the time for draining was over."""


WHOLE = (Outcome.STOP, Outcome.LENGTH)
"""Outcomes of an answer that is whole."""
BAD = frozenset(Outcome) - {*WHOLE, Outcome.CANCELLED}
"""Outcomes that nobody wanted."""


HELD_TO = "held_to"
"""What a timeline has of a request whose answer must have a form, with the form's kind."""


@dataclass(frozen=True, slots=True)
class Happened:
    """Something on a request's timeline. `choice` is None where it concerns all of them."""

    what: str
    at_s: float
    choice: int | None
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChoiceStory:
    """One engine request. What never came is None."""

    outcome: str
    n_output: int
    n_cached: int
    wait_s: float | None
    first_s: float | None
    """When its first token came, and its last."""
    last_s: float | None
    ended_s: float
    n_calls: int = 0
    """Calls of functions in the answer."""

    @property
    def is_complete(self) -> bool:
        """The answer is whole."""
        return self.outcome in WHOLE

    @property
    def per_token_s(self) -> float | None:
        """Mean time of an output token after the first one."""
        if self.first_s is None or self.last_s is None or self.n_output < 2:
            return None
        return (self.last_s - self.first_s) / (self.n_output - 1)


@dataclass(frozen=True, slots=True)
class RequestStory:
    """One API request with all of its choices, which the engine has taken."""

    request_id: str
    response_id: str
    tenant: str
    request_class: str
    operation: str
    """In OpenTelemetry's words: "chat" or "text_completion"."""
    traceparent: str
    """What the caller sent in the header of that name, "" if nothing."""
    arrived_s: float
    n_prompt: int
    choices: list[ChoiceStory]
    timeline: list[Happened]

    @property
    def form(self) -> str:
        """The kind of form that the answer was held to; empty: none."""
        return next((moment.detail["kind"] for moment in self.timeline if moment.what == HELD_TO), "")
