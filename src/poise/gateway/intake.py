"""The one door of requests: whose it is, which class and model, at which level of the server; a call comes out, ready to start.

The order of checks is the order in which they get dear: key, body, parameters, model, class, level, engine, tokens, context.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from poise.config import Settings
from poise.gateway.auditing import RequestEntry
from poise.gateway.call import Call, check_ids, fingerprint
from poise.gateway.engine_client import Engine, EnginePhase
from poise.gateway.engine_refusals import engine_not_ready, engine_unavailable
from poise.gateway.errors import ApiError, model_not_found
from poise.gateway.http.body import JsonObject
from poise.gateway.prompts import Prompts
from poise.gateway.record import Origin, Record
from poise.gateway.records import Records
from poise.gateway.request.generate import Generate
from poise.gateway.templates import Templates
from poise.gateway.tenancy.caller import Credentials
from poise.gateway.tenants import Tenants
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.gateway.values import Heading
from poise.gateway.writer import ResponseFormat, Shape
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready

T = TypeVar("T")

MODEL_ALIAS = "default"
"""Name that stands for the model, whatever it is called."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How one endpoint reads its requests, and how its answers are written."""

    parse: Callable[[JsonObject], Generate]
    format: type[ResponseFormat]
    id_prefix: str
    prompt_param: str


class Sender(Protocol):
    """Whoever sends a request, and waits for its answer."""

    @property
    def credentials(self) -> Credentials: ...

    @property
    def traceparent(self) -> str:
        """The sender's span; empty where there is none."""
        ...

    @property
    def is_detached(self) -> bool:
        """The request goes on when nobody waits for it. Raises ApiError where it cannot be told."""
        ...

    async def body(self) -> JsonObject:
        """What was sent. Raises ApiError."""
        ...

    async def while_wanted(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which is given up when nobody waits for it any more. Raises ClientGone then."""
        ...


class Intake:
    """Lets requests in: from what was sent to what is ready for the engine."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        text: TextSlot,
        tenants: Tenants,
        templates: Templates,
        metrics: GatewayMetrics,
        records: Records,
        check_level: Callable[[RequestClass], None],
        model_name: str,
    ) -> None:
        self._engine = engine
        self._text = text
        self._tenants = tenants
        self._metrics = metrics
        self._records = records
        self._check_level = check_level
        self._model_name = model_name
        self._prompts = Prompts(settings, templates, metrics.long_system_prompt)
        self.model_names = [model_name, MODEL_ALIAS]

    async def take(self, sender: Sender, endpoint: Endpoint, entry: RequestEntry) -> Call:
        """Ready for the engine, or ApiError. `entry` learns of it what the audit log is to have; the body is held no longer."""
        arrived_s = time.perf_counter()
        tenant: str | None = None
        try:
            caller = entry.caller = self._tenants.identify(sender.credentials)
            tenant = caller.tenant
            body = await sender.body()
            request = endpoint.parse(body)
            entry.request_class, entry.stream = request.request_class, request.stream
            if request.model not in self.model_names:
                raise model_not_found(request.model, self.model_names)
            self._tenants.check_class(caller, request.request_class)
            self._check_level(request.request_class)
            origin = Origin(
                caller.request_id,
                tenant,
                request.request_class,
                endpoint.prompt_param,
                arrived_s,
                request.queue_timeout_ms,
                sender.traceparent,
                caller.account,
                caller.is_declared,
            )
            entry.note_prompt(body.get(endpoint.prompt_param))
            detached = sender.is_detached or request.background
            preparing = self._prepare(origin, endpoint, request, detached=detached)
            call = await (preparing if detached else sender.while_wanted(preparing))
            if call.is_late:  # a summary is background work, and needs what that needs
                self._tenants.check_class(caller, RequestClass.BACKGROUND, for_summary=True)
                self._check_level(RequestClass.BACKGROUND)
            return call
        except ApiError as error:
            self._metrics.rejected(entry.request_class, error.code, tenant)
            raise

    async def _prepare(self, origin: Origin, endpoint: Endpoint, request: Generate, *, detached: bool) -> Call:
        """Everything that can be known before the engine is asked. Raises ApiError."""
        ready, text = self._available()
        check_ids([token for token, _ in request.sampling.logit_bias], text.n_tokens, "logit_bias")
        plan = await self._prompts.plan(origin, request, ready, text)
        heading = Heading(
            response_id=endpoint.id_prefix + secrets.token_hex(12),
            created=int(time.time()),
            model=self._model_name,
            service_tier=request.answer.service_tier,
            fingerprint=fingerprint(self._model_name, ready),
        )
        # The length came first: looking at each id of a prompt that is far too long would hold up the streams.
        for ids in plan.ids:
            check_ids(ids, text.n_tokens, plan.param)
        answer = request.answer
        shape = Shape(endpoint.format, heading, answer.include_usage, answer.continuous_usage, segments=answer.segments)
        n_choices = request.n * max(1, len(plan.ids))  # a prompt that waits for its summary is one
        record = Record(origin, shape, n_choices, detached=detached)
        return Call(record, request, plan, self._prompts, self._engine, text, self._metrics, self._records)

    def _available(self) -> tuple[Ready, TextModel]:
        state, text = self._engine.state, self._text.current
        if state.phase is not EnginePhase.READY or state.ready is None:
            raise engine_not_ready(state)
        if text is None:
            raise engine_unavailable("the vocabulary is being loaded", state.retry_after_s)
        return state.ready, text
