"""What the OpenAPI document says about the quarantine."""

from __future__ import annotations

from pydantic import Field

from poise.gateway.answer_schemas import Closed


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
