"""The two generation endpoints: an HTTP request to engine requests, and their record to a response.

The order of checks is the order in which they get dear: key, body, parameters, model, engine, tokens, context. Nothing is sent
before the engine has taken every choice, so that a refusal is an ordinary HTTP error also for a stream. The one exception is a
stream whose older turns must be summarized first, because that takes a while.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise import __version__
from poise.config import Settings
from poise.gateway.auditing import Audit, RequestEntry
from poise.gateway.bugs import log_bug
from poise.gateway.engine_client import EngineClient, EnginePhase
from poise.gateway.errors import (
    ApiError,
    engine_not_ready,
    engine_unavailable,
    internal_error,
    invalid_value,
    model_not_found,
)
from poise.gateway.fields import JsonObject
from poise.gateway.generation import TOLD_WAIT_US, ChoiceRequest, Generation
from poise.gateway.http.backpressure import patience
from poise.gateway.http.body import read_json
from poise.gateway.http.middleware import request_id_of
from poise.gateway.http.stream import EventStream, while_connected
from poise.gateway.openai import ChatRequest, CompletionRequest, Options, RequestParser, class_settings
from poise.gateway.prompts import Plan, Prompts
from poise.gateway.reader import Reader
from poise.gateway.record import Follower, Origin, Record
from poise.gateway.records import Records
from poise.gateway.responses import ChatFormat, CompletionFormat, Heading, Shape
from poise.gateway.slices import in_turns, json_of
from poise.gateway.summary import Summarizer
from poise.gateway.templates import Templates
from poise.gateway.tenants import Tenants, caller_of
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready

log = logging.getLogger(__name__)

MODEL_ALIAS = "default"
"""Name that stands for the model, whatever it is called."""
RESPONSE_ID_HEADER, DETACH_HEADER = "X-Poise-Response-Id", "X-Poise-Detach"
POSITION_HEADER, ETA_HEADER = "X-Poise-Queue-Position", "X-Poise-Queue-Eta-Ms"
TRACEPARENT_CHARS = 55
"""Of version 00 of W3C Trace Context, which later ones begin with."""

_SEEDS = 2**32 - 1
"""The engine's seeds are 32 bit, and llama.cpp takes the highest one to mean a random seed."""


class Completions:
    """Answers /v1/chat/completions and /v1/completions."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineClient,
        text: TextSlot,
        tenants: Tenants,
        templates: Templates,
        metrics: GatewayMetrics,
        records: Records,
        check_level: Callable[[RequestClass], None],
        audit: Audit,
        model_name: str,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._text = text
        self._tenants = tenants
        self._metrics = metrics
        self._records = records
        self._check_level = check_level
        self._audit = audit
        self._model_name = model_name
        self._prompts = Prompts(settings, templates, metrics.long_system_prompt)
        self.model_names = [model_name, MODEL_ALIAS]
        self.parser = RequestParser(settings)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, self.parser.chat)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, self.parser.completion)

    async def _answer(
        self, request: Request, parse: Callable[[JsonObject], ChatRequest] | Callable[[JsonObject], CompletionRequest]
    ) -> Response:
        with self._audit.begin(request) as entry:
            call = await self._read(request, parse, entry)
        call.entry = entry
        if entry.stream:
            return await self._stream(request, call)
        follower = Follower(call.record)
        try:
            call.start()
            await while_connected(request.receive, follower.ended())
        finally:
            follower.leave()
        record = call.record
        answers = await in_turns(record.gather())
        return await json_of(record.body(answers), call.headers)

    async def _read(
        self,
        request: Request,
        parse: Callable[[JsonObject], ChatRequest] | Callable[[JsonObject], CompletionRequest],
        entry: RequestEntry,
    ) -> Call:
        """From the request to what is ready for the engine. The body is not held any longer than that. Raises ApiError."""
        arrived_s = time.perf_counter()
        tenant: str | None = None
        try:
            tenant = self._tenants.identify(request)
            server = self._settings.server
            body = await read_json(request, server.max_body_bytes, server.body_timeout_s)
            parsed = parse(body)
            options = parsed.options
            entry.request_class, entry.stream = options.request_class, options.stream
            if options.model not in self.model_names:
                raise model_not_found(options.model, self.model_names)
            self._tenants.check_class(request, options.request_class)
            self._check_level(options.request_class)
            param = "messages" if isinstance(parsed, ChatRequest) else "prompt"
            caller = caller_of(request)
            origin = Origin(
                request_id_of(request.scope),
                tenant,
                options.request_class,
                param,
                arrived_s,
                options.queue_timeout_ms,
                traceparent_of(request.headers),
                caller.account,
                caller.is_declared,
            )
            entry.note_prompt(body.get(param))
            detached = _is_detached(request) or options.background
            preparing = self._prepare(origin, caller_of(request).account, parsed, detached=detached)
            call = await (preparing if detached else while_connected(request.receive, preparing))
            if call.is_late:  # a summary is background work, and needs what that needs
                self._tenants.check_class(request, RequestClass.BACKGROUND, for_summary=True)
                self._check_level(RequestClass.BACKGROUND)
            return call
        except ApiError as error:
            self._metrics.rejected(entry.request_class, error.code, tenant)
            raise

    async def _stream(self, request: Request, call: Call) -> Response:
        """Its events. Also when this task is cancelled in the very moment in which the engine has accepted, nothing is left."""
        origin, streams = call.record.origin, self._metrics.streams
        delay_s = class_settings(self._settings, origin.request_class).pacing_ms / 1000
        reader = Reader(call.record, streams, delay_s=delay_s)
        try:
            call.start()
            if not call.is_late:
                await while_connected(request.receive, reader.opened())
        except BaseException:
            reader.leave()
            raise
        return EventStream(reader, patience(self._settings.streams, origin.request_class), streams, call.headers)

    async def _prepare(
        self, origin: Origin, account: str, parsed: ChatRequest | CompletionRequest, *, detached: bool
    ) -> Call:
        """Everything that can be known before the engine is asked. Raises ApiError."""
        ready, text = self._available()
        options = parsed.options
        _check_ids([token for token, _ in options.sampling.logit_bias], text.n_tokens, "logit_bias")
        if isinstance(parsed, ChatRequest):
            plan = await self._prompts.chat(account, origin.tenant, parsed, ready, text)
        else:
            plan = await self._prompts.completion(account, parsed, ready, text)
        heading = Heading(
            response_id=("chatcmpl-" if isinstance(parsed, ChatRequest) else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=self._model_name,
            service_tier=options.service_tier,
            fingerprint=fingerprint(self._model_name, ready),
        )
        # The length came first: looking at each id of a prompt that is far too long would hold up the streams.
        for ids in plan.ids:
            _check_ids(ids, text.n_tokens, plan.param)
        kind = ChatFormat if isinstance(parsed, ChatRequest) else CompletionFormat
        shape = Shape(kind, heading, options.include_usage, options.continuous_usage, segments=options.segments)
        n_choices = options.n * max(1, len(plan.ids))  # a prompt that waits for its summary is one
        record = Record(origin, shape, n_choices, detached=detached)
        return Call(record, parsed, plan, self._prompts, self._engine, text, self._metrics, self._records)

    def _available(self) -> tuple[Ready, TextModel]:
        state, text = self._engine.state, self._text.current
        if state.phase is not EnginePhase.READY or state.ready is None:
            raise engine_not_ready(state)
        if text is None:
            raise engine_unavailable("the vocabulary is being loaded", state.retry_after_s)
        return state.ready, text


class Call:
    """One API request that is ready for the engine: perhaps a summary first, then its generation. It is its record's work."""

    def __init__(
        self,
        record: Record,
        parsed: ChatRequest | CompletionRequest,
        plan: Plan,
        prompts: Prompts,
        engine: EngineClient,
        text: TextModel,
        metrics: GatewayMetrics,
        records: Records,
    ) -> None:
        self.record = record
        self.is_late = plan.summary is not None
        """A summary comes first: too long to leave a stream without a sign of life."""
        self._asked: tuple[ChatRequest | CompletionRequest, Plan] | None = (parsed, plan)
        """Until it starts: from then on the prompt is held by who works on it, and by nobody who outlives that."""
        self._headers = {RESPONSE_ID_HEADER: record.response_id, **plan.headers}
        self._prompts = prompts
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self._records = records
        self._generation = Generation(record, engine, text, metrics)
        self._summarizer: Summarizer | None = None
        self._task: asyncio.Task[None] | None = None
        self.entry: RequestEntry | None = None
        """What is put on record of it at its end."""

    @property
    def headers(self) -> dict[str, str]:
        """Of the response: its id, and what the engine said of the wait on its arrival, if that was worth telling."""
        headers, accepted = dict(self._headers), self.record.accepted
        if accepted is not None and accepted.eta_us >= TOLD_WAIT_US:
            headers |= {POSITION_HEADER: str(accepted.position), ETA_HEADER: str(accepted.eta_us // 1000)}
        return headers

    def start(self) -> None:
        """Hand it to the engine. Whoever follows the record hears what comes of it."""
        assert self._asked is not None, "it has started"
        (parsed, plan), self._asked = self._asked, None
        self.record.work, self.record.on_end = self, self._ended
        self._records.add(self.record)
        if plan.summary is None:
            self._submit(parsed, plan)
        else:
            self.record.note("summarizing", turns=plan.summary.n_turns)
            self._task = asyncio.create_task(self._summarize(parsed, plan), name="summary")

    def stop(self, why: str) -> None:
        if self._task is not None:
            self._task.cancel()
        self._generation.stop(why)

    def hold(self, level: str) -> None:
        self._generation.hold(level)

    def requests(self) -> list[tuple[int, int]]:
        """What the engine is computing for it now, the summary included."""
        if self._summarizer is not None and self._summarizer.running is not None:
            return self._summarizer.running.requests()
        return self._generation.requests()

    async def _summarize(self, parsed: ChatRequest | CompletionRequest, plan: Plan) -> None:
        """Make the prompt that the summary belongs to, then go on as usual."""
        assert plan.summary is not None
        assert isinstance(parsed, ChatRequest)
        try:
            self._summarizer = Summarizer(self.record, self._engine, self._text, self._metrics)
            summary = await self._summarizer.summarize(plan.summary.pieces, plan.summary.n_output)
            self._summarizer = None
            await self._prompts.finish(plan, parsed, self._text.of(plan.account), summary)
            self._submit(parsed, plan)
        except ApiError as error:
            self._generation.fail(error)
        except Exception as bug:
            error_id = log_bug(log, self.record.origin.request_id, bug)
            self._generation.fail(internal_error(error_id))

    def _submit(self, parsed: ChatRequest | CompletionRequest, plan: Plan) -> None:
        self.record.n_prompt = sum(len(ids) for ids in plan.ids)
        self.record.shape.notes = plan.notes
        self._generation.submit(_choices(plan, parsed.options), parsed.options.stop)

    def _ended(self, record: Record) -> None:
        """Nobody comes back for a request that was refused, unless its client has been told an id."""
        refused = record.failure is not None and not record.is_open
        if refused and record.failure is not None:
            tenant = None if record.erased else record.origin.tenant
            self._metrics.rejected(record.origin.request_class, record.failure.code, tenant)
        entry, self.entry, self._task = self.entry, None, None
        if entry is not None:
            entry.ended(record)
        self._records.finish(record, keep=not refused or self.is_late)


def _choices(plan: Plan, options: Options) -> list[ChoiceRequest]:
    """One engine request for each choice of each prompt, in the order of their indices."""
    seed = secrets.randbits(32) if options.seed is None else options.seed
    requests = []
    for ids in plan.ids:
        max_output = plan.allowance.granted(plan.limits, len(ids))
        assert max_output is not None, "the plan fits"
        for i in range(options.n):
            sampling = msgspec.structs.replace(options.sampling, seed=(seed + i) % _SEEDS)
            requests.append(ChoiceRequest(ids, max_output, sampling, plan.template))
    return requests


def _is_detached(request: Request) -> bool:
    value = request.headers.get(DETACH_HEADER, "0")
    if value not in ("0", "1"):
        raise invalid_value(DETACH_HEADER, 'be "1", or be left out', value)
    return value == "1"


def traceparent_of(headers: Mapping[str, str]) -> str:
    """The caller's span; nothing where it is no such header, which could be of any length."""
    value = headers.get("traceparent", "")
    return value if len(value) <= TRACEPARENT_CHARS else ""


def _check_ids(ids: list[int], n_tokens: int, param: str) -> None:
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < n_tokens:
            raise invalid_value(param, f"have token ids from 0 to {n_tokens - 1}", token, f"has {token}")


def fingerprint(model_name: str, ready: Ready) -> str:
    """Changes with the server's version and the model: what a repeated seed depends on."""
    parts: Sequence[str] = (__version__, model_name, ready.model_description, str(ready.model_bytes))
    return "fp_" + sha256("\n".join(parts).encode()).hexdigest()[:12]
