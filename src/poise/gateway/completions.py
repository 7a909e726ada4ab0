"""The two generation endpoints: an HTTP request to engine requests, and what comes of them to a response.

The order of checks is the order in which they get dear: key, body, parameters, model, engine, tokens, context. Nothing is sent
before the engine has taken every choice, so that a refusal is an ordinary HTTP error also for a stream. The one exception is a
stream whose older turns must be summarized first, because that takes a while.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from hashlib import sha256

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise import __version__
from poise.config import Settings
from poise.gateway.body import read_json
from poise.gateway.engine_client import EngineClient, EnginePhase
from poise.gateway.errors import ApiError, engine_not_ready, engine_unavailable, invalid_value, model_not_found
from poise.gateway.fields import JsonObject
from poise.gateway.generation import ChoiceRequest, Generation, Origin
from poise.gateway.live import LiveRequests
from poise.gateway.middleware import request_id_of
from poise.gateway.openai import ChatRequest, CompletionRequest, RequestParser
from poise.gateway.prompts import Plan, Prompts
from poise.gateway.responses import ChatFormat, CompletionFormat, Heading, ResponseFormat, summary_comment
from poise.gateway.stream import EventStream, while_connected
from poise.gateway.summary import Summarizer
from poise.gateway.templates import Templates
from poise.gateway.tenants import Tenants
from poise.gateway.text import TextModel, TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready

MODEL_ALIAS = "default"
"""Name that stands for the model, whatever it is called."""

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
        live: LiveRequests,
        model_name: str,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._text = text
        self._tenants = tenants
        self._metrics = metrics
        self._live = live
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
        arrived_s = time.perf_counter()
        request_class: RequestClass | None = None
        try:
            tenant = self._tenants.identify(request)
            server = self._settings.server
            parsed = parse(await read_json(request, server.max_body_bytes, server.body_timeout_s))
            options = parsed.options
            request_class = options.request_class
            if options.model not in self.model_names:
                raise model_not_found(options.model, self.model_names)
            param = "messages" if isinstance(parsed, ChatRequest) else "prompt"
            origin = Origin(
                request_id_of(request.scope), tenant, request_class, param, arrived_s, options.queue_timeout_ms
            )
            call = await self._prepare(origin, parsed)
            if options.stream and call.is_late:
                return EventStream(call.late_events(), call.close, origin.request_id, call.plan.headers)
            generation = await self._open(request, call)
        except ApiError as error:
            self._metrics.rejected(request_class, error.code)
            raise
        headers = call.plan.headers | generation.headers
        if options.stream:
            return EventStream(generation.events(), call.close, origin.request_id, headers)
        try:
            body = await while_connected(request.receive, generation.body())
        finally:
            call.close()
        return Response(body, media_type="application/json", headers=headers)

    async def _prepare(self, origin: Origin, parsed: ChatRequest | CompletionRequest) -> Call:
        """Everything that can be known before the engine is asked. Raises ApiError."""
        ready, text = self._available()
        options = parsed.options
        _check_ids([token for token, _ in options.sampling.logit_bias], text.vocab.n_tokens, "logit_bias")
        if isinstance(parsed, ChatRequest):
            plan = await self._prompts.chat(origin.tenant, parsed, ready, text)
        else:
            plan = await self._prompts.completion(parsed, ready, text)
        heading = Heading(
            response_id=("chatcmpl-" if isinstance(parsed, ChatRequest) else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=self._model_name,
            service_tier=options.service_tier,
            fingerprint=fingerprint(self._model_name, ready),
        )
        # The length came first: looking at each id of a prompt that is far too long would hold up the streams.
        for ids in plan.ids:
            _check_ids(ids, text.vocab.n_tokens, plan.param)
        return Call(origin, parsed, plan, heading, self._prompts, self._engine, text, self._metrics, self._live)

    async def _open(self, request: Request, call: Call) -> Generation:
        try:
            return await while_connected(request.receive, call.open())
        except BaseException:
            # Also when this task is cancelled in the very moment in which the engine has accepted.
            call.close()
            raise

    def _available(self) -> tuple[Ready, TextModel]:
        state, text = self._engine.state, self._text.current
        if state.phase is not EnginePhase.READY or state.ready is None:
            raise engine_not_ready(state)
        if text is None:
            raise engine_unavailable("the vocabulary is being loaded", state.retry_after_s)
        return state.ready, text


class Call:
    """One API request that is ready for the engine: perhaps a summary first, then its generation. `close` at the end."""

    def __init__(
        self,
        origin: Origin,
        parsed: ChatRequest | CompletionRequest,
        plan: Plan,
        heading: Heading,
        prompts: Prompts,
        engine: EngineClient,
        text: TextModel,
        metrics: GatewayMetrics,
        live: LiveRequests,
    ) -> None:
        self.plan = plan
        self.origin = origin
        self._parsed = parsed
        self._heading = heading
        self._live = live
        self._prompts = prompts
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self._running: Generation | Summarizer | None = None

    @property
    def is_late(self) -> bool:
        """A summary comes first: too long to leave a stream without a sign of life."""
        return self.plan.summary is not None

    @property
    def response_id(self) -> str:
        return self._heading.response_id

    @property
    def generation(self) -> Generation | None:
        """What the engine is computing for it now, the summary included."""
        return self._running.running if isinstance(self._running, Summarizer) else self._running

    async def open(self) -> Generation:
        """The generation, taken by the engine. Raises ApiError, with nothing left behind."""
        self._live.add(self)
        if self.plan.summary is not None:
            assert isinstance(self._parsed, ChatRequest)
            form = self._format()
            self._running = summarizer = Summarizer(self.origin, self._engine, self._text, form, self._metrics)
            summary = await summarizer.summarize(self.plan.summary.pieces, self.plan.summary.n_output)
            await self._prompts.finish(self.plan, self._parsed, self._text, summary)
        options = self._parsed.options
        self._running = generation = Generation(
            self.origin,
            self._engine,
            self._text,
            self._format(),
            self._metrics,
            n_prompt=sum(len(ids) for ids in self.plan.ids),
            stop=options.stop,
            include_usage=options.include_usage,
            continuous_usage=options.continuous_usage,
            segments=options.segments,
        )
        await generation.open(self._choices())
        return generation

    async def late_events(self) -> AsyncGenerator[bytes, None]:
        """The stream of a request whose summary is still to be made: its headers are out, so errors come as events."""
        assert self.plan.summary is not None
        yield summary_comment(self.plan.summary.n_turns)
        try:
            generation = await self.open()
        except ApiError as error:
            self._metrics.rejected(self.origin.request_class, error.code)
            raise
        async with aclosing(generation.events()) as events:
            async for event in events:
                yield event

    def close(self) -> None:
        """Take back from the engine what has not ended. Any number of times."""
        self._live.discard(self)
        if self._running is not None:
            self._running.close()

    def _choices(self) -> list[ChoiceRequest]:
        """One engine request for each choice of each prompt, in the order of their indices."""
        plan, options = self.plan, self._parsed.options
        seed = secrets.randbits(32) if options.seed is None else options.seed
        requests = []
        for ids in plan.ids:
            max_output = plan.allowance.granted(plan.limits, len(ids))
            assert max_output is not None, "the plan fits"
            for i in range(options.n):
                sampling = msgspec.structs.replace(options.sampling, seed=(seed + i) % _SEEDS)
                requests.append(ChoiceRequest(ids, max_output, sampling, plan.template))
        return requests

    def _format(self) -> ResponseFormat:
        options = self._parsed.options
        usage_field = options.include_usage or options.continuous_usage
        kind = ChatFormat if isinstance(self._parsed, ChatRequest) else CompletionFormat
        return kind(self._heading, usage_field, self.plan.notes)


def _check_ids(ids: list[int], n_tokens: int, param: str) -> None:
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < n_tokens:
            raise invalid_value(param, f"have token ids from 0 to {n_tokens - 1}", token, f"has {token}")


def fingerprint(model_name: str, ready: Ready) -> str:
    """Changes with the server's version and the model: what a repeated seed depends on."""
    parts: Sequence[str] = (__version__, model_name, ready.model_description, str(ready.model_bytes))
    return "fp_" + sha256("\n".join(parts).encode()).hexdigest()[:12]
