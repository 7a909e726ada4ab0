"""What the scheduler is told about a request, and what it answers.

Everything here is a value: no text, no token ids, no clock. Times are integer nanoseconds, costs integer microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RequestClass(StrEnum):
    """A class of service. Order of declaration is order of precedence."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class RejectReason(StrEnum):
    """Why a request was not accepted."""

    TOO_LONG = "too_long"
    """It can never fit: prompt plus output exceed the largest slot it may use."""

    QUEUE_FULL = "queue_full"
    """The queue of its class is at its bound."""


class FinishReason(StrEnum):
    """Why an accepted request ended. Every accepted request ends with exactly one of these."""

    STOP = "stop"
    """The model ended its answer."""

    LENGTH = "length"
    """The request's output allowance is used up."""

    ABORTED = "aborted"
    """The caller no longer wants it (cancelled, gone, or a stop string was found)."""

    FAILED = "failed"
    """The runner could not compute it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to compute.

    `n_prompt` is at least 1. `max_output` is the most tokens that may be generated, at least 1.
    """

    request_id: int
    tenant: str
    request_class: RequestClass
    n_prompt: int
    max_output: int

    def __post_init__(self) -> None:
        assert self.n_prompt >= 1, f"request {self.request_id}: n_prompt = {self.n_prompt}"
        assert self.max_output >= 1, f"request {self.request_id}: max_output = {self.max_output}"

    @property
    def n_cells(self) -> int:
        """KV cells it can need at most: the last generated token is never fed back."""
        return self.n_prompt + self.max_output - 1


@dataclass(frozen=True, slots=True)
class Queued:
    """The request was accepted and waits. `position` counts from 1; `eta_us` is the estimated wait."""

    request_id: int
    position: int
    eta_us: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request was refused at once; nothing of it is kept.

    `value` is what was asked, `limit` what is allowed (tokens for TOO_LONG, queue places for QUEUE_FULL).
    """

    request_id: int
    reason: RejectReason
    value: int
    limit: int
    retry_after_us: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The request got a slot; `wait_us` is the time it spent queued."""

    request_id: int
    pool: str
    wait_us: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The one terminal event of an accepted request."""

    request_id: int
    reason: FinishReason
    n_prompt: int
    n_output: int
    served_us: int
    """Measured compute charged to the request."""
    detail: str = ""


Event = Started | Finished
