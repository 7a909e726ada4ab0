"""The gateway as one ASGI application: what answers at which path.

    app = create_app(settings, engine, model_name="smollm2", text=TextSlot(workers))
    await app.set_text(text)  # as soon as the vocabulary is there; until then requests are answered with 503

The application starts nothing: the engine is the caller's, who can run it in `lifespan`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from poise.config import Settings
from poise.gateway.api.generation import Generation
from poise.gateway.api.native.admin import Admin
from poise.gateway.api.native.journal import JournalRoom
from poise.gateway.api.native.requests import Requests
from poise.gateway.api.native.routing import RoutingAnswers
from poise.gateway.api.native.status import Health, HistoryAnswer
from poise.gateway.api.openai.models import Models
from poise.gateway.api.openai.parser import spoken
from poise.gateway.api.operation import Operation, document
from poise.gateway.api.tokenizer import Tokenizer
from poise.gateway.condition.degradation import Degradation
from poise.gateway.condition.history import History
from poise.gateway.condition.lookout import Lookout
from poise.gateway.condition.memory import TRIM_EVERY_S, free_bytes, give_back
from poise.gateway.condition.power.watch import PowerWatch
from poise.gateway.explain.explainer import Explainer
from poise.gateway.http.addresses import AddressMiddleware
from poise.gateway.http.guard import GuardMiddleware
from poise.gateway.http.middleware import Failures, RequestMiddleware
from poise.gateway.http.pages import PAGE_DIR, page_routes
from poise.gateway.intake import Intake
from poise.gateway.models.assembly import assemble
from poise.gateway.models.backend import Backend
from poise.gateway.models.local.model import LocalModel
from poise.gateway.models.local.templates import Templates
from poise.gateway.models.money.ledger import Ledger
from poise.gateway.models.names import ModelNames
from poise.gateway.models.routed import Routing
from poise.gateway.records.kept import Records
from poise.gateway.request.refusals import ApiError
from poise.gateway.supervision.engine import WholeEngine
from poise.gateway.tasks import Tasks
from poise.gateway.tasks.tasks import Pulse
from poise.gateway.tenancy.auditing import Audit
from poise.gateway.tenancy.erasure import EngineEraser, Eraser
from poise.gateway.tenancy.keys import KeyRing
from poise.gateway.tenancy.strangers import Strangers
from poise.gateway.tenancy.tenants import LocalOperators, Tenants
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.metrics.early import RecoveryMetrics
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


@dataclass(eq=False, repr=False)
class Gateway:
    """The ASGI application, and those of its parts that its owner has to do with."""

    _app: Starlette
    operations: Sequence[Operation]
    _local: LocalModel | None
    metrics: GatewayMetrics
    history: History
    degradation: Degradation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def running(self) -> AbstractAsyncContextManager[Mapping[str, Any] | None]:
        """The application at work, as a server runs it: what looks at it once a second is started, and ended."""
        return self._app.router.lifespan_context(self._app)

    async def set_text(self, text: TextModel) -> None:
        """Give it its vocabulary. Raises TemplateUnusable."""
        if self._local is not None:
            await self._local.set_text(text)


def create_app(
    settings: Settings,
    engine: WholeEngine,
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
    backends: Mapping[str, Backend] | None = None,
    ledger: Ledger | None = None,
) -> Gateway:
    """An application that serves `engine`. `lifespan` is entered at its start and left at its end. Raises UnknownTarget, and
    EgressError where the key of another server cannot be read.

    text       who makes tokens of texts; `Gateway.set_text` brings the vocabulary
    keys       of the keys file, where there is one
    operators  those of this machine, who prove it with the server's token; without it nobody is one without an admin key
    audit      where to put on record what happens
    recovery   what is counted of lost engines, by who restarts them
    tasks      who keeps what works beside the requests
    free       memory that this process may still use
    backends   who answers for other models, by the names that requests may have, beside those of the settings
    ledger     of what other servers cost; without it that is not kept"""
    tasks = tasks or Tasks()
    metrics = GatewayMetrics(
        lambda: engine.state.reading, recovery, settings.metrics.tenants_max, tasks.metrics, text.jobs.metrics
    )
    records = Records(settings.results)
    tenants = Tenants(settings, keys, operators := operators or LocalOperators(), records.is_live)
    degradation = Degradation(settings, engine, metrics.recovery, free)
    audit = audit or Audit(settings)
    _put_on_record(audit, metrics, tasks, degradation, keys)
    lookout = Lookout(engine, records, metrics.audit, tasks, text.jobs)
    history = History(engine, metrics, degradation)
    check = partial(_check, (degradation, power := PowerWatch(settings, engine, metrics.power)))
    local = LocalModel(settings, model_name, engine, text, metrics) if settings.engine.enabled else None
    models = assemble(settings, model_name, local, audit, ledger, text.jobs, metrics)
    every = {**models.backends, **(backends or {})}
    first, any_name = local or next(iter(every.values())), settings.model.any_name or local is None
    names = ModelNames(every, settings.aliases, any_name=any_name, patterns=models.patterns)
    health = Health(engine, first, text.jobs, tenants, metrics, degradation, lookout, history, tasks, power)
    metrics.streams.watch_records(records.count, lambda: records.n_bytes)
    intake = Intake(names, tenants, metrics, records, check)
    erasers: list[Eraser] = [EngineEraser(engine), records, *models.erasers, metrics, audit]
    templates = local.templates if local is not None else Templates(settings.templates)
    pulse = Pulse(tasks, _looks(degradation, power, lookout, history, records, audit))
    explainer = Explainer(settings, engine, records, history, lambda: power.watts_busy)
    operations = [
        *Generation(settings, intake, metrics.streams, audit, dialects := spoken(settings)).operations(),
        *Requests(settings, tenants, records, metrics.streams, explainer, templates).operations(),
        *Models(names, tenants).operations(),
        *(Tokenizer(settings, names, local, tenants, check).operations() if local is not None else ()),
        *health.operations(),
        *HistoryAnswer(history, tenants).operations(),
        *Admin(engine, JournalRoom(engine), tenants, records, audit, erasers, explainer, operators).operations(),
        *(RoutingAnswers(models.routing, names, dialects, tenants, audit).operations() if models.routing is not None else ()),
    ]
    routes = [
        *(operation.route() for operation in operations),
        _openapi(operations, settings.server.root_path),
        *page_routes(page_dir),
    ]
    guards = _guards(settings, tenants, metrics, routes)
    app = _application(operations, routes, guards, audit.strangers, _beside(tasks, pulse, models.routing, lifespan))
    return Gateway(app, operations, local, metrics, history, degradation)


def _put_on_record(audit: Audit, metrics: GatewayMetrics, tasks: Tasks, degradation: Degradation, keys: KeyRing | None) -> None:
    """What happens to the server goes into the audit log."""
    audit.watch(metrics.audit, tasks)
    degradation.on_change = audit.level_changed
    if keys is not None:
        keys.on_change = audit.keys_changed


def _check(asked: Sequence[Degradation | PowerWatch], request_class: RequestClass) -> None:
    """Raises ApiError where one of them has no place for a new request of the class."""
    for one in asked:
        one.check(request_class)


def _looks(
    degradation: Degradation, power: PowerWatch, lookout: Lookout, history: History, records: Records, audit: Audit
) -> dict[str, Callable[[], None]]:
    """What looks once a second, in this order: each sample says at which level the server is."""
    return {
        "levels": degradation.look,
        "power": power.look,
        "findings": lookout.look,
        "history": history.sample,
        "records": records.purge,
        "strangers": audit.strangers.look,
    }


def _beside(tasks: Tasks, pulse: Pulse, routing: Routing | None, inner: Lifespan | None) -> Lifespan:
    """What lives as long as there is an application: the caller's own, which is entered first and left first, and beside the
    requests the pulse and the look at the heap, until all tasks are stopped."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if routing is not None:
                stack.push_async_callback(routing.egress.close)
            stack.push_async_callback(tasks.stop)
            for remote in routing.remotes.values() if routing is not None else ():
                tasks.start(f"backend-{remote.name}", remote.watch)
            if inner is not None:
                await stack.enter_async_context(inner(app))
            pulse.start()
            tasks.every("heap", TRIM_EVERY_S, give_back)
            yield

    return lifespan


def _guards(settings: Settings, tenants: Tenants, metrics: GatewayMetrics, routes: Sequence[BaseRoute]) -> list[Middleware]:
    """What each request passes on its way in, the outermost first."""
    return [
        Middleware(AddressMiddleware, root_path=settings.server.root_path, routes=routes),
        Middleware(RequestMiddleware, server=settings.server, account_of=tenants.account_of, metrics=metrics),
        Middleware(GuardMiddleware, server=settings.server),
    ]


def _application(
    operations: Sequence[Operation],
    routes: Sequence[BaseRoute],
    middleware: Sequence[Middleware],
    strangers: Strangers,
    lifespan: Lifespan,
) -> Starlette:
    """What answers at `routes`, behind `middleware`."""
    refusals = {spoken.path: spoken.dialect.refusal for spoken in operations if spoken.dialect is not None}
    failures = Failures(strangers, refusals, [operation.described_path for operation in operations])
    app = Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={ApiError: failures.api_error, HTTPException: failures.http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _openapi(operations: Sequence[Operation], root_path: str) -> Route:
    """The document, which is put together for the first who asks: beside the loop, because it takes some 50 ms."""
    text = cache(lambda: msgspec.json.encode(document(operations, root_path)))

    async def answer(_: Request) -> Response:
        return Response(await asyncio.to_thread(text), media_type="application/json")

    return Route("/openapi.json", answer)
