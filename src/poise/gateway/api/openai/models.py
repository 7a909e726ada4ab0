"""The models of this server."""

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette.requests import Request

from poise.gateway.api.operation import Operation
from poise.gateway.http.connections.peers import credentials_of
from poise.gateway.models.backend import Backend
from poise.gateway.models.names import ModelNames
from poise.gateway.tenancy.tenants import Tenants


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model under one of its names. `root`: its own. `context_length` is what OpenRouter calls it, `max_model_len` vLLM."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "poise"
    root: str
    context_length: int | None
    max_model_len: int | None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class Models:
    """Answers /v1/models."""

    def __init__(self, names: ModelNames, tenants: Tenants) -> None:
        self._names = names
        self._tenants = tenants
        self._created = int(time.time())

    def operations(self) -> Sequence[Operation]:
        path = "/v1/models/{model_id:path}"
        return [
            Operation("GET", "/v1/models", self.list, "List the models", [401, 503], headers={}),
            Operation("GET", path, self.get, "Describe a model", [401, 404, 503], headers={}),
        ]

    async def list(self, request: Request) -> ModelList:
        """Each model under its own name, then the aliases."""
        self._tenants.identify(credentials_of(request))
        cards = [self._described(backend) for backend in self._names.models]
        cards += [self._described(backend, name) for backend in self._names.models for name in backend.card.others]
        aliases = [self._described(backend, name) for name, backend in self._names.aliases.items()]
        return ModelList(data=cards + aliases)

    async def get(self, request: Request) -> ModelCard:
        self._tenants.identify(credentials_of(request))
        name = request.path_params["model_id"]
        return self._described(self._names.find(name), name)

    def _described(self, backend: Backend, name: str | None = None) -> ModelCard:
        own, n = backend.card.name, backend.card.context_length
        return ModelCard(id=name or own, created=self._created, root=own, context_length=n, max_model_len=n)
