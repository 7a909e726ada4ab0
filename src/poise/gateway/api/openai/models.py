"""The models of this server."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from starlette.requests import Request

from poise.gateway.api.operation import Operation
from poise.gateway.http.credentials import credentials_of
from poise.gateway.models.backend import Backend
from poise.gateway.request.refusals import model_not_found
from poise.gateway.tenancy.tenants import Tenants


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "poise"
    context_length: int | None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Models:
    """Answers /v1/models."""

    def __init__(self, models: Mapping[str, Backend], tenants: Tenants) -> None:
        """`models`: by the names that requests may have; one with several is listed once."""
        self._models = models
        self._tenants = tenants
        self._created = int(time.time())

    def operations(self) -> Sequence[Operation]:
        path = "/v1/models/{model_id:path}"
        return [
            Operation("GET", "/v1/models", self.list, "List the models", [401, 503], headers={}),
            Operation("GET", path, self.get, "Describe a model", [401, 404, 503], headers={}),
        ]

    async def list(self, request: Request) -> ModelList:
        self._tenants.identify(credentials_of(request))
        return ModelList(data=[self._described(backend) for backend in dict.fromkeys(self._models.values())])

    async def get(self, request: Request) -> ModelCard:
        self._tenants.identify(credentials_of(request))
        name = request.path_params["model_id"]
        backend = self._models.get(name)
        if backend is None:
            raise model_not_found(name, self._models)
        return self._described(backend)

    def _described(self, backend: Backend) -> ModelCard:
        card = backend.card
        return ModelCard(id=card.name, created=self._created, context_length=card.context_length)
