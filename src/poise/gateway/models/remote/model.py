"""Another server as a backend: what the policy sees of it, which model is asked for there, and how it is."""

import asyncio
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import msgspec

from poise.config import Settings
from poise.config.classes import class_settings, default_output
from poise.config.policy import to_policy
from poise.gateway.models.backend import Card
from poise.gateway.models.egress.door import Call, Egress, EgressError
from poise.gateway.models.egress.permit import Permit
from poise.gateway.models.money.ledger import Ledger
from poise.gateway.models.remote import anthropic, openai
from poise.gateway.models.remote.answer import RemoteAnswer, Server
from poise.gateway.models.remote.asked import capabilities_of
from poise.gateway.models.remote.breaker import Breaker
from poise.gateway.models.remote.queue import SlotQueue
from poise.gateway.models.remote.turns import Turns
from poise.gateway.models.routing.policy import BackendView, health_permit
from poise.gateway.records.record import Record
from poise.gateway.request.generate import Generate
from poise.gateway.request.labels import label_of
from poise.gateway.request.refusals import ApiError
from poise.metrics.egress import BackendFigures
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass

IDLE_S = 60.0
"""A server that has given no answer for so long is asked how it is."""
FAILED_S, FAILED_MAX_S = 5.0, 15.0
"""One that was not there is asked again after this time, and then less often."""
MODELS_MAX, NAME_CHARS_MAX, BODY_BYTES_MAX = 1000, 200, 1 << 20
_FORMATS: Mapping[str, ModuleType] = {"openai": openai, "anthropic": anthropic}
_CONTEXTS = ("max_model_len", "context_length", "context_window", "max_input_tokens")


class RemoteModel:
    """One section of `backends`."""

    def __init__(self, name: str, settings: Settings, egress: Egress, ledger: Ledger, metrics: GatewayMetrics) -> None:
        self._settings, self._egress, self._ledger, self._metrics = settings, egress, ledger, metrics
        backend = settings.backends[name]
        self.name = name
        self.leaves_host = egress.leaves_host(name)
        self.breaker = Breaker()
        self.turns = Turns(name, SlotQueue(to_policy(settings), backend.slots, backend.queue_max))
        self._server = Server(
            name,
            backend,
            settings.sampling,
            capabilities_of(backend),
            _FORMATS[backend.format],
            egress,
            ledger,
            metrics,
            self.turns,
            self.breaker,
        )
        self._contexts: dict[str, int | None] = {}
        """By name of a model that it said it has, how much of that holds."""
        self._is_down = False
        self._price = ledger.price(name)
        metrics.egress.watch_backend(name, self._figures)

    @property
    def names(self) -> tuple[str, ...]:
        """The models that it said it has."""
        return tuple(self._contexts)

    @property
    def card(self) -> Card:
        model = self.model_for("")
        return Card(model, self._context(model) or None)

    @property
    def is_healthy(self) -> bool:
        """It is taken to answer."""
        return not self._is_down and self.breaker.is_free(time.monotonic())

    @property
    def retry_after_s(self) -> float:
        """When to ask again, where it is not healthy."""
        wait_s = self.breaker.wait_s(time.monotonic())
        return max(FAILED_S, wait_s if wait_s is not None else IDLE_S)

    def view(self, request_class: RequestClass, tenant: str | None = None) -> BackendView:
        """What the policy sees. `tenant`: whose budget is looked at; None: nobody's."""
        server = self._server
        return BackendView(
            name=self.name,
            ceiling=label_of(server.settings.ceiling),
            leaves_host=self.leaves_host,
            is_healthy=self.is_healthy,
            wait_s=self.turns.queue.wait_us(request_class) / 1e6,
            context_tokens=self._context(self.model_for("")),
            capabilities=server.capabilities,
            tier=server.settings.tier,
            price=(self._price.prompt, self._price.output),
            has_budget=tenant is None or self._ledger.has_room(tenant, self.name),
        )

    def exhausted(self, tenant: str) -> ApiError | None:
        """What a tenant is told that has no budget left here: which, how much, until when."""
        return self._ledger.exhausted(tenant, self.name)

    def answer(self, request: Generate, record: Record, permit_of: Callable[[], Permit]) -> RemoteAnswer:
        """Ready to run."""
        limits = class_settings(self._settings, request.request_class)
        wanted = default_output(limits) if request.max_tokens is None else request.max_tokens
        most = max(1, min(wanted, limits.max_output_tokens, self._server.settings.output_tokens))
        return RemoteAnswer(self._server, request, self.model_for(request.model), most, record, permit_of)

    def model_for(self, wanted: str) -> str:
        """The name that it is asked for: the settings', else the one that the request names, if it has that, else its first."""
        if self._server.settings.model:
            return self._server.settings.model
        return wanted if wanted in self._contexts else next(iter(self._contexts), wanted or self.name)

    async def watch(self) -> None:
        """See how it is, for ever: at first, after a failure, and while it gives no answers."""
        failed_s = FAILED_S
        while True:
            is_there = (self.is_healthy and self.turns.queue.n_busy > 0) or await self.check()
            failed_s = FAILED_S if is_there else min(FAILED_MAX_S, failed_s * 2)
            await asyncio.sleep(IDLE_S if is_there else failed_s)

    async def check(self) -> bool:
        """Ask it for its models. Returns whether it is there, as far as that can be known: what nothing may leave for is not
        asked."""
        if self.leaves_host and self._egress.why_closed:
            return True
        now_s = time.monotonic()
        if (passed := self.breaker.take(now_s)) is None:
            return False
        try:
            async with self._egress.send(health_permit(self.name), Call("/models", accept="application/json")) as reply:
                self._learn(await reply.body(BODY_BYTES_MAX))
        except EgressError as error:
            if error.kind in ("closed", "no_audit"):
                self.breaker.gave_up(passed)
                return True
            is_there = error.kind == "status" and error.status in (400, 404, 405, 501)  # it has no list, but is there
            self._is_down = not is_there
            if is_there:
                self.breaker.succeeded(passed)
            else:
                self.breaker.failed(passed, now_s, status=error.status, retry_after_s=error.retry_after_s)
            return is_there
        except BaseException:
            self.breaker.gave_up(passed)
            raise
        self.breaker.succeeded(passed)
        self._is_down = False
        return True

    def reset(self) -> None:
        """An operator has acted: it is tried again."""
        self.breaker.reset()
        self._is_down = False

    def _context(self, model: str) -> int:
        """Prompt and output together; 0: not known."""
        return self._server.settings.context_tokens or self._contexts.get(model) or 0

    def _learn(self, body: bytes) -> None:
        """Names and contexts of models, in the ways in which servers write them. What is none of them says nothing."""
        try:
            decoded = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        listed = decoded.get("data", decoded.get("models")) if isinstance(decoded, dict) else decoded
        cards = [card for card in listed[:MODELS_MAX] if isinstance(card, dict)] if isinstance(listed, list) else []
        found = {name: context_of(card) for card in cards if isinstance(name := card.get("id"), str) and name}
        if found:
            self._contexts = {name: context for name, context in found.items() if len(name) <= NAME_CHARS_MAX}

    def _figures(self) -> BackendFigures:
        queue = self.turns.queue
        return BackendFigures(queue.n_slots, queue.n_busy, {c.value: n for c, n in queue.n_waiting.items()}, self.is_healthy)


def context_of(card: Mapping[str, Any]) -> int | None:
    """vLLM, poise and others say it of a model; llama-server within `meta`."""
    meta = card.get("meta")
    found = [card.get(name) for name in _CONTEXTS]
    found += [meta.get(name) for name in ("n_ctx", "n_ctx_train")] if isinstance(meta, dict) else []
    return next((n for n in found if type(n) is int and 0 < n <= 1 << 30), None)
