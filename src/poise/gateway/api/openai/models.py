"""The models of this server, of which there is one."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from poise.config import Settings
from poise.gateway import schemas
from poise.gateway.engine_client import EngineClient
from poise.gateway.errors import model_not_found
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.replies import json_reply
from poise.gateway.intake import MODEL_ALIAS
from poise.gateway.prompts import limits_of
from poise.gateway.schemas import Closed
from poise.gateway.tenants import Tenants
from poise.scheduler.request import RequestClass


class ModelCard(Closed):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int | None


class ModelList(Closed):
    object: Literal["list"]
    data: list[ModelCard]


class Models:
    """Answers /v1/models."""

    def __init__(self, settings: Settings, engine: EngineClient, tenants: Tenants, model_name: str) -> None:
        self._settings = settings
        self._engine = engine
        self._tenants = tenants
        self._model_name = model_name
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        self._tenants.identify(credentials_of(request))
        return json_reply({"object": "list", "data": [self._card()]})

    async def get(self, request: Request) -> Response:
        self._tenants.identify(credentials_of(request))
        name = request.path_params["model_id"]
        if name not in (self._model_name, MODEL_ALIAS):
            raise model_not_found(name, [self._model_name, MODEL_ALIAS])
        return json_reply(self._card())

    def _card(self) -> dict[str, Any]:
        ready = self._engine.state.ready
        contexts = [limits_of(name, self._settings, ready).context for name in RequestClass] if ready else []
        return {
            "id": self._model_name,
            "object": "model",
            "created": self._created,
            "owned_by": "poise",
            "context_length": max(contexts, default=None),
        }


def add_models(app: FastAPI, models: Models) -> None:
    app.add_api_route(
        "/v1/models",
        models.list,
        summary="List the models",
        responses=schemas.answer(ModelList) | schemas.errors(401, 503),
    )
    app.add_api_route(
        "/v1/models/{model_id:path}",
        models.get,
        summary="Describe a model",
        responses=schemas.answer(ModelCard) | schemas.errors(401, 404, 503),
        openapi_extra={"parameters": [schemas.path_parameter("model_id")]},
    )
