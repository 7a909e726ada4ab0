"""The templates that a caller may use."""

from __future__ import annotations

from typing import Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway import schemas
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.replies import json_reply
from poise.gateway.schemas import Closed
from poise.gateway.templates import Templates
from poise.gateway.tenants import Tenants


class TemplateCard(Closed):
    name: str
    object: Literal["template"]
    tokens: int | None
    kept: bool


class TemplateList(Closed):
    object: Literal["list"]
    data: list[TemplateCard]


class TemplatesAnswer:
    """Answers /v1/templates."""

    def __init__(self, templates: Templates, tenants: Tenants) -> None:
        self._templates = templates
        self._tenants = tenants

    async def templates(self, request: Request) -> Response:
        """Those that the caller may use."""
        caller = self._tenants.identify(credentials_of(request))
        known = self._templates.of_tenant(caller.tenant).items()
        data = [
            {"name": name, "object": "template", "tokens": info.n_tokens, "kept": info.kept} for name, info in known
        ]
        return json_reply({"object": "list", "data": data})


def add_templates(app: FastAPI, answer: TemplatesAnswer) -> None:
    app.add_api_route(
        "/v1/templates",
        answer.templates,
        summary="List the templates that the caller may use",
        responses=schemas.answer(TemplateList) | schemas.errors(401, 503),
    )
