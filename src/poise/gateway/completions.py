"""The two generation endpoints: an HTTP request to engine requests, and what comes of them to a response.

The order of checks is the order in which they get dear: key, body, parameters, model, engine, tokens, context. Nothing is sent
before the engine has taken every choice, so that a refusal is an ordinary HTTP error also for a stream.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise import __version__
from poise.config import Settings
from poise.gateway.body import read_json
from poise.gateway.engine_client import EngineClient, EnginePhase
from poise.gateway.errors import (
    ApiError,
    context_length_exceeded,
    engine_not_ready,
    engine_unavailable,
    invalid_value,
    model_not_found,
)
from poise.gateway.fields import JsonObject
from poise.gateway.generation import ChoiceRequest, Generation, Origin
from poise.gateway.middleware import request_id_of
from poise.gateway.openai import ChatRequest, CompletionRequest, Options, RequestParser, class_settings, default_output
from poise.gateway.responses import ChatFormat, CompletionFormat, Heading, ResponseFormat
from poise.gateway.stream import EventStream, while_connected
from poise.gateway.tenants import Tenants
from poise.gateway.text import TextModel, TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready

MODEL_ALIAS = "default"
"""Name that stands for the model, whatever it is called."""

_SEEDS = 2**32 - 1
"""The engine's seeds are 32 bit, and llama.cpp takes the highest one to mean a random seed."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """The token ids of a request's prompts, and the parameter they came from."""

    ids: list[list[int]]
    param: str


class Completions:
    """Answers /v1/chat/completions and /v1/completions."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineClient,
        text: TextSlot,
        tenants: Tenants,
        metrics: GatewayMetrics,
        model_name: str,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._text = text
        self._tenants = tenants
        self._metrics = metrics
        self._model_name = model_name
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
            origin = Origin(request_id_of(request.scope), tenant, request_class, param, arrived_s)
            generation, requests = await self._prepare(origin, parsed)
            await self._open(request, generation, requests)
        except ApiError as error:
            self._metrics.rejected(request_class, error.code)
            raise
        if options.stream:
            return EventStream(generation.events(), generation.close, origin.request_id)
        try:
            body = await while_connected(request.receive, generation.body())
        finally:
            generation.close()
        return Response(body, media_type="application/json")

    async def _prepare(
        self, origin: Origin, parsed: ChatRequest | CompletionRequest
    ) -> tuple[Generation, list[ChoiceRequest]]:
        """A generation and what it is to ask the engine for. Raises ApiError."""
        ready, text = self._available()
        options = parsed.options
        prompts = await self._tokenise(text, parsed)
        generation = Generation(
            origin,
            self._engine,
            text,
            self._format(options, ready, chat=isinstance(parsed, ChatRequest)),
            self._metrics,
            n_prompt=sum(len(ids) for ids in prompts.ids),
            stop=options.stop,
            include_usage=options.include_usage,
            continuous_usage=options.continuous_usage,
        )
        return generation, self._choices(options, prompts, ready, text)

    async def _open(self, request: Request, generation: Generation, requests: Sequence[ChoiceRequest]) -> None:
        try:
            await while_connected(request.receive, generation.open(requests))
        except BaseException:
            # Also when this task is cancelled in the very moment in which the engine has accepted.
            generation.close()
            raise

    def _available(self) -> tuple[Ready, TextModel]:
        state, text = self._engine.state, self._text.current
        if state.phase is not EnginePhase.READY or state.ready is None:
            raise engine_not_ready(state)
        if text is None:
            raise engine_unavailable("the vocabulary is being loaded", state.retry_after_s)
        return state.ready, text

    async def _tokenise(self, text: TextModel, parsed: ChatRequest | CompletionRequest) -> Prompts:
        if isinstance(parsed, ChatRequest):
            return Prompts([await text.chat_ids(parsed.messages)], "messages")
        prompts = Prompts([], "prompt")
        for prompt in parsed.prompts:
            ids = await text.prompt_ids(prompt) if isinstance(prompt, str) else prompt
            if not ids:
                raise invalid_value("prompt", "have at least one token", prompt)
            prompts.ids.append(ids)
        return prompts

    def _choices(self, options: Options, prompts: Prompts, ready: Ready, text: TextModel) -> list[ChoiceRequest]:
        """One engine request for each choice of each prompt, in the order of their indices."""
        n_tokens = text.vocab.n_tokens
        _check_ids([token for token, _ in options.sampling.logit_bias], n_tokens, "logit_bias")
        seed = secrets.randbits(32) if options.seed is None else options.seed
        requests = []
        for ids in prompts.ids:
            # The length comes first: looking at each id of a prompt that is far too long would hold up the streams.
            max_output = self._allowance(options, len(ids), ready, prompts.param)
            _check_ids(ids, n_tokens, prompts.param)
            for i in range(options.n):
                sampling = msgspec.structs.replace(options.sampling, seed=(seed + i) % _SEEDS)
                requests.append(ChoiceRequest(ids, max_output, sampling))
        return requests

    def _allowance(self, options: Options, n_prompt: int, ready: Ready, prompt_param: str) -> int:
        """Output tokens for a prompt. A named number is kept or refused; the default is cut to what the context has left."""
        largest = max(pool.slot_cells for pool in ready.pools)
        left = largest - n_prompt + 1  # the last token is never fed back, so it takes no cell
        wanted = options.max_tokens
        if wanted is None:
            wanted = min(default_output(class_settings(self._settings, options.request_class)), max(1, left))
        if wanted > left:
            raise context_length_exceeded(n_prompt, wanted, largest, prompt_param)
        return wanted

    def _format(self, options: Options, ready: Ready, *, chat: bool) -> ResponseFormat:
        heading = Heading(
            response_id=("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            created=int(time.time()),
            model=self._model_name,
            service_tier=options.service_tier,
            fingerprint=fingerprint(self._model_name, ready),
        )
        usage_field = options.include_usage or options.continuous_usage
        return ChatFormat(heading, usage_field) if chat else CompletionFormat(heading, usage_field)


def _check_ids(ids: list[int], n_tokens: int, param: str) -> None:
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < n_tokens:
            raise invalid_value(param, f"have token ids from 0 to {n_tokens - 1}", token, f"has {token}")


def fingerprint(model_name: str, ready: Ready) -> str:
    """Changes with the server's version and the model: what a repeated seed depends on."""
    parts: Sequence[str] = (__version__, model_name, ready.model_description, str(ready.model_bytes))
    return "fp_" + sha256("\n".join(parts).encode()).hexdigest()[:12]
