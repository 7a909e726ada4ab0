"""The models of this server, of which there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from starlette.requests import Request

from poise.config import Settings
from poise.gateway.api.operation import Operation
from poise.gateway.engine_client import EngineView
from poise.gateway.errors import model_not_found
from poise.gateway.http.credentials import credentials_of
from poise.gateway.intake import MODEL_ALIAS
from poise.gateway.prompts import limits_of
from poise.gateway.tenants import Tenants
from poise.scheduler.request import RequestClass


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

    def __init__(self, settings: Settings, engine: EngineView, tenants: Tenants, model_name: str) -> None:
        self._settings = settings
        self._engine = engine
        self._tenants = tenants
        self._model_name = model_name
        self._created = int(time.time())

    def operations(self) -> Sequence[Operation]:
        path = "/v1/models/{model_id:path}"
        return [
            Operation("GET", "/v1/models", self.list, "List the models", [401, 503], headers={}),
            Operation("GET", path, self.get, "Describe a model", [401, 404, 503], headers={}),
        ]

    async def list(self, request: Request) -> ModelList:
        self._tenants.identify(credentials_of(request))
        return ModelList(data=[self._card()])

    async def get(self, request: Request) -> ModelCard:
        self._tenants.identify(credentials_of(request))
        name = request.path_params["model_id"]
        if name not in (self._model_name, MODEL_ALIAS):
            raise model_not_found(name, [self._model_name, MODEL_ALIAS])
        return self._card()

    def _card(self) -> ModelCard:
        ready = self._engine.state.ready
        contexts = [limits_of(name, self._settings, ready).context for name in RequestClass] if ready else []
        return ModelCard(id=self._model_name, created=self._created, context_length=max(contexts, default=None))
