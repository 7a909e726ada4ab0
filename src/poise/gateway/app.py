"""The gateway as one ASGI application: what answers at which path.

    app = create_app(settings, engine, model_name="smollm2", text=TextSlot(workers))
    await set_text(app, text)  # as soon as the vocabulary is there; until then requests are answered with 503

The application starts nothing: the engine is the caller's, who can run it in `lifespan`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from poise import __version__
from poise.config import Settings
from poise.gateway import answer_schemas, schemas
from poise.gateway.admin import Admin, add_admin
from poise.gateway.auditing import Audit
from poise.gateway.completions import MODEL_ALIAS, Completions
from poise.gateway.degradation import Degradation, free_bytes
from poise.gateway.engine_client import EngineClient
from poise.gateway.erasure import Erasure, engine_eraser, metrics_eraser, records_eraser
from poise.gateway.errors import ApiError, method_not_allowed, model_not_found, not_found
from poise.gateway.explanations import Explainer
from poise.gateway.guard import GuardMiddleware
from poise.gateway.health import Health, read_engine
from poise.gateway.heap import TRIM_EVERY_S, give_back
from poise.gateway.history import PERIOD_S, History
from poise.gateway.http.middleware import RequestMiddleware, request_id_of
from poise.gateway.http.peers import peer_of
from poise.gateway.keys import KeyRing
from poise.gateway.lookout import Lookout
from poise.gateway.pages import PAGE_DIR, add_pages
from poise.gateway.prompts import limits_of
from poise.gateway.records import PURGE_EVERY_S, Records
from poise.gateway.requests import Requests
from poise.gateway.schemas_explanation import Explanation
from poise.gateway.schemas_history import SINCE_PARAMETER, HistoryBody
from poise.gateway.tasks import Tasks
from poise.gateway.tasks.lifespan import Lifespan, beside
from poise.gateway.templates import Templates
from poise.gateway.tenancy.operators import LocalOperators
from poise.gateway.tenancy.strangers import Strangers
from poise.gateway.tenants import Tenants
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.recovery import RecoveryMetrics
from poise.scheduler.request import RequestClass

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


def create_app(
    settings: Settings,
    engine: EngineClient,
    *,
    model_name: str,
    text: TextSlot,
    lifespan: Lifespan | None = None,
    page_dir: Path = PAGE_DIR,
    keys: KeyRing | None = None,
    operators: LocalOperators | None = None,
    audit: Audit | None = None,
    recovery: RecoveryMetrics | None = None,
    tasks: Tasks | None = None,
    free: Callable[[], int] = free_bytes,
) -> FastAPI:
    """An application that serves `engine`. `lifespan` is entered at its start and left at its end.

    text       who makes tokens of texts; `set_text` brings the vocabulary
    keys       of the keys file, where there is one
    operators  those of this machine, who prove it with the server's token; without it nobody is one without an admin key
    audit      where to put on record what happens
    recovery   what is counted of lost engines, by who restarts them
    tasks      who keeps what works beside the requests
    free       memory that this process may still use
    """
    tasks = tasks or Tasks()
    metrics = GatewayMetrics(
        lambda: read_engine(engine), recovery, settings.metrics.tenants_max, tasks.metrics, text.jobs.metrics
    )
    audit = audit or Audit(settings)
    audit.watch(metrics.audit, tasks)
    degradation = Degradation(settings, engine, metrics.recovery, free)
    degradation.on_change = audit.level_changed
    records = Records(settings.results)
    tenants = Tenants(settings, keys, operators := operators or LocalOperators(), records.is_live)
    if keys is not None:
        keys.on_change = audit.keys_changed
    lookout = Lookout(engine, records, metrics.audit, tasks, text.jobs)
    health = Health(engine, text, tenants, metrics, degradation, lookout, tasks, model_name)
    history = History(engine, metrics, degradation, check=tenants.check_status)
    templates = Templates(settings.templates)
    metrics.streams.watch_records(records.count, lambda: records.n_bytes)
    completions = Completions(
        settings, engine, text, tenants, templates, metrics, records, degradation.check, audit, model_name
    )
    erasure = Erasure([engine_eraser(engine), records_eraser(records), metrics_eraser(metrics), audit.erase])
    looks = {
        "levels": (LOOK_EVERY_S, degradation.look),
        "findings": (LOOK_EVERY_S, lookout.look),
        "rates": (LOOK_EVERY_S, health.sample_rates),
        "history": (PERIOD_S, history.sample),
        "records": (PURGE_EVERY_S, records.purge),
        "strangers": (LOOK_EVERY_S, audit.strangers.look),
        "heap": (TRIM_EVERY_S, give_back),
    }
    app = _empty(beside(tasks, looks, lifespan), audit.strangers)
    app.state.text_slot = text
    app.state.metrics = metrics
    app.state.history = history
    app.state.degradation = degradation
    app.state.templates, app.state.engine = templates, engine
    app.add_middleware(GuardMiddleware, server=settings.server)
    app.add_middleware(RequestMiddleware, server=settings.server, account_of=tenants.account_of, metrics=metrics)
    _add_generation(app, completions)
    explainer = Explainer(settings, engine, records, history)
    _add_requests(app, Requests(settings, tenants, records, metrics.streams, explainer))
    _add_models(app, Models(settings, engine, tenants, templates, model_name))
    _add_health(app, health, history)
    add_admin(app, Admin(engine, tenants, records, audit, erasure, explainer, operators))
    add_pages(app, page_dir)
    return app


def _empty(lifespan: Lifespan, strangers: Strangers) -> FastAPI:
    """An application that has nothing yet but the format of its errors."""
    app = FastAPI(
        title="poise",
        version=__version__,
        description="A local LLM server that keeps its composure under load, with the OpenAI API.",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_exception_handler(ApiError, partial(_api_error, strangers))
    app.add_exception_handler(HTTPException, _http_error)
    return app


async def set_text(app: FastAPI, text: TextModel) -> None:
    """Give an application its vocabulary. Raises TemplateUnusable."""
    await text.learn_blanks()
    app.state.engine.declare(await app.state.templates.learn(text))
    app.state.text_slot.current = text


class Models:
    """Answers /v1/models, of which there is one, and /v1/templates."""

    def __init__(
        self, settings: Settings, engine: EngineClient, tenants: Tenants, templates: Templates, model_name: str
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._tenants = tenants
        self._templates = templates
        self._model_name = model_name
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        self._tenants.identify(request)
        return _json({"object": "list", "data": [self._card()]})

    async def get(self, request: Request) -> Response:
        self._tenants.identify(request)
        name = request.path_params["model_id"]
        if name not in (self._model_name, MODEL_ALIAS):
            raise model_not_found(name, [self._model_name, MODEL_ALIAS])
        return _json(self._card())

    async def templates(self, request: Request) -> Response:
        """Those that the caller may use."""
        tenant = self._tenants.identify(request)
        known = self._templates.of_tenant(tenant).items()
        data = [
            {"name": name, "object": "template", "tokens": info.n_tokens, "kept": info.kept} for name, info in known
        ]
        return _json({"object": "list", "data": data})

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


def _add_generation(app: FastAPI, completions: Completions) -> None:
    parser = completions.parser
    app.add_api_route(
        "/v1/chat/completions",
        completions.chat,
        methods=["POST"],
        summary="Continue a conversation",
        responses=schemas.generation(answer_schemas.ChatCompletion),
        openapi_extra=schemas.request_body(parser.chat_schema(), completions.model_names),
    )
    app.add_api_route(
        "/v1/completions",
        completions.complete,
        methods=["POST"],
        summary="Continue a text",
        responses=schemas.generation(answer_schemas.Completion),
        openapi_extra=schemas.request_body(parser.completion_schema(), completions.model_names),
    )


def _add_requests(app: FastAPI, requests: Requests) -> None:
    own = {"parameters": [schemas.path_parameter("request_id")]}
    app.add_api_route(
        "/v1/requests",
        requests.list,
        summary="List the caller's requests, the newest first, without their text",
        responses=schemas.answer(schemas.RequestList) | schemas.errors(401),
    )
    app.add_api_route(
        "/v1/requests/{request_id}",
        requests.get,
        summary="How a request stands, or ended, with its text so far",
        responses=schemas.answer(schemas.RequestReport) | schemas.errors(401, 404),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}",
        requests.erase,
        methods=["DELETE"],
        summary="Erase a request that has ended",
        responses=schemas.answer(schemas.EraseResult) | schemas.errors(401, 404, 409),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}/cancel",
        requests.cancel,
        methods=["POST"],
        summary="End a request; what there is of its result is kept",
        responses=schemas.answer(schemas.RequestReport) | schemas.errors(401, 404),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}/explanation",
        requests.explanation,
        summary="Why a request took as long as it did, without its text",
        responses=schemas.answer(Explanation) | schemas.errors(401, 404),
        openapi_extra=own,
    )
    app.add_api_route(
        "/v1/requests/{request_id}/stream",
        requests.stream,
        summary="The events of a request, running or ended, from a place on",
        responses=schemas.events() | schemas.errors(400, 401, 403, 404),
        openapi_extra={"parameters": [schemas.path_parameter("request_id"), *schemas.PLACES]},
    )


def _add_models(app: FastAPI, models: Models) -> None:
    app.add_api_route(
        "/v1/models",
        models.list,
        summary="List the models",
        responses=schemas.answer(schemas.ModelList) | schemas.errors(401, 503),
    )
    app.add_api_route(
        "/v1/models/{model_id:path}",
        models.get,
        summary="Describe a model",
        responses=schemas.answer(schemas.ModelCard) | schemas.errors(401, 404, 503),
        openapi_extra={"parameters": [schemas.path_parameter("model_id")]},
    )

    app.add_api_route(
        "/v1/templates",
        models.templates,
        summary="List the templates that the caller may use",
        responses=schemas.answer(schemas.TemplateList) | schemas.errors(401, 503),
    )


def _add_health(app: FastAPI, health: Health, history: History) -> None:
    not_ready = schemas.answer(schemas.HealthBody, 503, "Not ready to take requests.")
    app.add_api_route(
        "/health",
        health.health,
        summary="Readiness, with progress while loading",
        responses=schemas.answer(schemas.HealthBody) | not_ready,
    )
    app.add_api_route(
        "/health/live",
        health.live,
        summary="Liveness of the gateway",
        responses=schemas.answer(schemas.LiveBody),
    )
    app.add_api_route(
        "/status",
        health.status,
        summary="Live figures",
        responses=schemas.answer(schemas.StatusBody) | schemas.errors(401),
    )
    app.add_api_route(
        "/status/history",
        history.answer,
        summary="The last ten minutes, a sample a second",
        responses=schemas.answer(HistoryBody) | schemas.errors(400, 401),
        openapi_extra={"parameters": [SINCE_PARAMETER]},
    )
    app.add_api_route(
        "/metrics",
        health.metrics,
        summary="Metrics for Prometheus",
        responses=schemas.plain("Metrics in Prometheus' text format.") | schemas.errors(401),
        response_class=Response,  # of no type of its own: its errors are JSON
    )


async def _api_error(strangers: Strangers, request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if error.status == 401:
        error = strangers.refused(peer_of(request.scope).address, error)
    # Neither message nor parameter: they quote the request.
    log.info("[%s] answered with %d %s", request_id_of(request.scope), error.status, error.code)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Errors of the router and of the static files, in the format of all others."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return not_found(path).response()
    headers = dict(error.headers or {})
    if error.status_code == 405:
        return method_not_allowed(request.method, path, headers).response()
    return ApiError(error.status_code, "http_error", str(error.detail), headers=headers).response()


def _json(body: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
