"""The templates that a caller may use."""

from typing import Literal

import msgspec
from starlette.requests import Request

from poise.gateway.api.operation import Operation
from poise.gateway.http.credentials import credentials_of
from poise.gateway.models.local.templates import Templates
from poise.gateway.tenancy.tenants import Tenants


class TemplateCard(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    object: Literal["template"] = "template"
    tokens: int | None
    kept: bool


class TemplateList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[TemplateCard]


class TemplatesAnswer:
    """Answers /v1/templates."""

    def __init__(self, templates: Templates, tenants: Tenants) -> None:
        self._templates = templates
        self._tenants = tenants

    def operations(self) -> list[Operation]:
        summary = "List the templates that the caller may use"
        return [Operation("GET", "/v1/templates", self.templates, summary, [401, 503], headers={})]

    async def templates(self, request: Request) -> TemplateList:
        """Those that the caller may use."""
        known = self._templates.of_tenant(self._tenants.identify(credentials_of(request)).tenant).items()
        return TemplateList(data=[TemplateCard(name=name, tokens=n, kept=kept) for name, (n, kept) in known])
