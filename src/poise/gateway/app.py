"""The gateway as one ASGI application: what answers at which path.

    app = create_app(settings, engine, model_name="smollm2", text=TextSlot(workers))
    await app.set_text(text)  # as soon as the vocabulary is there; until then requests are answered with 503

The application starts nothing: the engine is the caller's, who can run it in `lifespan`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from poise import __version__
from poise.config import Settings
from poise.gateway.admin import Admin, add_admin
from poise.gateway.api.generation import Generation, add_generation
from poise.gateway.api.native.history import HistoryAnswer, add_history
from poise.gateway.api.native.templates import TemplatesAnswer, add_templates
from poise.gateway.api.openai.models import Models, add_models
from poise.gateway.auditing import Audit
from poise.gateway.degradation import Degradation
from poise.gateway.engine_client import EngineClient
from poise.gateway.erasure import Erasure, engine_eraser, metrics_eraser, records_eraser
from poise.gateway.errors import ApiError
from poise.gateway.explanations import Explainer
from poise.gateway.guard import GuardMiddleware
from poise.gateway.health import Health, add_health
from poise.gateway.heap import TRIM_EVERY_S, give_back
from poise.gateway.history import History
from poise.gateway.host import free_bytes
from poise.gateway.http.failures import api_error, http_error
from poise.gateway.http.middleware import RequestMiddleware
from poise.gateway.intake import Intake
from poise.gateway.keys import KeyRing
from poise.gateway.lookout import Lookout
from poise.gateway.pages import PAGE_DIR, add_pages
from poise.gateway.records import Records
from poise.gateway.requests import Requests, add_requests
from poise.gateway.supervision.reading import read_engine
from poise.gateway.tasks import Tasks
from poise.gateway.tasks.lifespan import Lifespan, beside
from poise.gateway.tasks.pulse import Pulse
from poise.gateway.templates import Templates
from poise.gateway.tenancy.operators import LocalOperators
from poise.gateway.tenancy.strangers import Strangers
from poise.gateway.tenants import Tenants
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.recovery import RecoveryMetrics


class Gateway:
    """The ASGI application, and those of its parts that its owner has to do with."""

    def __init__(
        self,
        app: FastAPI,
        engine: EngineClient,
        text: TextSlot,
        templates: Templates,
        metrics: GatewayMetrics,
        history: History,
        degradation: Degradation,
    ) -> None:
        self._app = app
        self._engine = engine
        self._text = text
        self._templates = templates
        self.metrics = metrics
        self.history = history
        self.degradation = degradation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def running(self) -> AbstractAsyncContextManager[Mapping[str, Any] | None]:
        """The application at work, as a server runs it: what looks at it once a second is started, and ended."""
        return self._app.router.lifespan_context(self._app)

    async def set_text(self, text: TextModel) -> None:
        """Give it its vocabulary. Raises TemplateUnusable."""
        await text.learn_blanks()
        self._engine.declare(await self._templates.learn(text))
        self._text.current = text


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
) -> Gateway:
    """An application that serves `engine`. `lifespan` is entered at its start and left at its end.

    text       who makes tokens of texts; `Gateway.set_text` brings the vocabulary
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
    history = History(engine, metrics, degradation)
    health = Health(
        engine, text, tenants, metrics, degradation, lookout, tasks, model_name, rates=lambda: history.tokens_per_s
    )
    templates = Templates(settings.templates)
    metrics.streams.watch_records(records.count, lambda: records.n_bytes)
    intake = Intake(settings, engine, text, tenants, templates, metrics, records, degradation.check, model_name)
    erasure = Erasure([engine_eraser(engine), records_eraser(records), metrics_eraser(metrics), audit.erase])
    pulse = Pulse(
        tasks,
        {
            "levels": degradation.look,
            "findings": lookout.look,
            "history": history.sample,  # behind the levels: each sample says at which one the server is
            "records": records.purge,
            "strangers": audit.strangers.look,
        },
    )
    rarely = {"heap": (TRIM_EVERY_S, give_back)}
    app = _empty(beside(tasks, pulse, rarely, lifespan), audit.strangers)
    app.add_middleware(GuardMiddleware, server=settings.server)
    app.add_middleware(RequestMiddleware, server=settings.server, account_of=tenants.account_of, metrics=metrics)
    add_generation(app, Generation(settings, intake, metrics.streams, audit), intake.model_names)
    explainer = Explainer(settings, engine, records, history)
    add_requests(app, Requests(settings, tenants, records, metrics.streams, explainer))
    add_models(app, Models(settings, engine, tenants, model_name))
    add_templates(app, TemplatesAnswer(templates, tenants))
    add_health(app, health)
    add_history(app, HistoryAnswer(history, tenants))
    add_admin(app, Admin(engine, tenants, records, audit, erasure, explainer, operators))
    add_pages(app, page_dir)
    return Gateway(app, engine, text, templates, metrics, history, degradation)


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
    app.add_exception_handler(ApiError, partial(api_error, strangers))
    app.add_exception_handler(HTTPException, http_error)
    return app
