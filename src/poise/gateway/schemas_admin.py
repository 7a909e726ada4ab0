"""What the OpenAPI document says about requests as operators see them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from poise.gateway.api.native.timeline import RequestMoment
from poise.gateway.fields import Schema
from poise.gateway.schemas import Closed


class LoginCode(Closed):
    code: str
    expires_in_s: float


class Login(Closed):
    key: str


LOGIN_BODY: Schema = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
            }
        },
    }
}


class LiveRequest(Closed):
    id: str
    request_id: str
    tenant: str
    class_: str = Field(alias="class")
    state: Literal["queued", "running", "paused", "swapped"]
    choices: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    age_ms: int


class EndedRequest(Closed):
    id: str
    request_id: str
    tenant: str
    class_: str = Field(alias="class")
    state: Literal["ended"]
    choices: int
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    age_ms: int
    took_ms: int
    outcome: str
    error: str | None


class LiveRequestList(Closed):
    data: list[LiveRequest]
    ended: list[EndedRequest]


class ChoiceCounts(Closed):
    index: int
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    output_tokens: int
    cached_tokens: int
    finish_reason: str | None
    outcome: str | None


class RequestView(Closed):
    """A request as operators see it: without its text."""

    id: str
    request_id: str
    tenant: str
    class_: str = Field(alias="class")
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    choices: list[ChoiceCounts]
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    age_ms: int
    took_ms: int | None
    outcome: str | None
    error: str | None
    timeline: list[RequestMoment]


ENDED_PARAMETER: Schema = {
    "name": "ended",
    "in": "query",
    "required": False,
    "description": "And so many of those that ended last and are kept.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 200},
}


class ControlledChoice(Closed):
    index: int
    state: Literal["queued", "running", "paused", "swapped", "ended"]
    detail: str


class ControlResult(Closed):
    id: str
    action: Literal["pause", "resume", "downgrade", "cancel"]
    choices: list[ControlledChoice]


class ForgetResult(Closed):
    tenant: str
    entries: int
    cells: int


class TenantEraseResult(Closed):
    tenant: str
    live_ended: int
    live_kept: int
    erased: dict[str, int]


LIVE_PARAMETER: Schema = {
    "name": "live",
    "in": "query",
    "required": False,
    "description": "1: end the tenant's live requests as well.",
    "schema": {"type": "string", "enum": ["0", "1"]},
}


class QuarantineReportBody(Closed):
    request_id: str
    request_class: str = Field(alias="class")
    engine_request: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    deaths: int
    ended_by: str
    accepted_at: str
    quarantined_at: str


class QuarantineList(Closed):
    data: list[QuarantineReportBody]
