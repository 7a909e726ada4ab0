"""A model on this host: its engine, its vocabulary, its templates and its limits, as one backend."""

import json
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from poise import __version__
from poise.config import Settings
from poise.gateway.models.backend import BackendState, Card, Job
from poise.gateway.models.local.generation import Generation
from poise.gateway.models.local.job import LocalJob
from poise.gateway.models.local.prompts import Prompts, check_suffix, limits_of
from poise.gateway.models.local.refusals import engine_not_ready, engine_unavailable
from poise.gateway.models.local.templates import Templates, TemplateUnusable
from poise.gateway.records.record import Origin
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import invalid_value
from poise.gateway.supervision.engine import Engine, EnginePhase
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready


class LocalModel:
    """A Backend over the engine."""

    def __init__(self, settings: Settings, name: str, engine: Engine, text: TextSlot, metrics: GatewayMetrics) -> None:
        self._settings = settings
        self._name = name
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self.templates = Templates(settings.templates)
        self._prompts = Prompts(settings, self.templates, metrics.long_system_prompt)
        self.grammars = self._prompts.grammars

    @property
    def card(self) -> Card:
        ready = self._engine.state.ready
        contexts = [limits_of(name, self._settings, ready).context for name in RequestClass] if ready else []
        return Card(self._name, max(contexts, default=None))

    @property
    def state(self) -> BackendState:
        state = self._engine.state
        return BackendState(state.phase is EnginePhase.READY and self._text.current is not None, state.retry_after_s)

    def wait_s(self, request_class: RequestClass, n_prompt: int) -> tuple[float, float]:
        """Of a new request of the class: the wait, and the compute of so many prompt tokens, as estimated last."""
        status = self._engine.state.status
        figures = status.classes.get(request_class) if status is not None else None
        return (figures.wait_estimate_us / 1e6, n_prompt * figures.prompt_us / 1e6) if figures is not None else (0.0, 0.0)

    async def set_text(self, text: TextModel) -> None:
        """Give it its vocabulary. Raises TemplateUnusable."""
        if path := self._settings.model.response_template:
            try:
                text.read_by(json.loads(Path(path).read_text("utf-8")))  # noqa: ASYNC240 - at the start, and small
            except (OSError, ValueError) as error:
                raise TemplateUnusable(f"model.response_template = {path}: {error}") from error
        await text.learn_reasoning()
        self._engine.declare(await self.templates.learn(text))
        self._text.current = text

    async def prepare(self, request: Generate, origin: Origin) -> Job:
        """Its prompts, within the limits of its class. Raises ApiError."""
        ready, text = self._ready(), self.text()
        check_ids([token for token, _ in request.sampling.logit_bias], text.n_tokens, "logit_bias")
        check_suffix(request.suffix, text, self._name)
        plan = await self._prompts.plan(origin, request, ready, text)
        # The length came first: looking at each id of a prompt that is far too long would hold up the streams.
        for ids in plan.ids:
            check_ids(ids, text.n_tokens, plan.param)
        fingerprint = _fingerprint(self._name, ready)
        generation_of = partial(Generation, engine=self._engine, text=text, metrics=self._metrics)
        return LocalJob(request, plan, fingerprint, self._prompts, text, generation_of)

    def text(self) -> TextModel:
        """What makes tokens of texts, and texts of tokens. Raises ApiError until it is there."""
        if self._text.current is None:
            raise engine_unavailable("the vocabulary is being loaded", self._engine.state.retry_after_s)
        return self._text.current

    def _ready(self) -> Ready:
        state = self._engine.state
        if state.phase is not EnginePhase.READY or state.ready is None:
            raise engine_not_ready(state)
        return state.ready


def check_ids(ids: list[int], n_tokens: int, param: str) -> None:
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < n_tokens:
            raise invalid_value(param, f"have token ids from 0 to {n_tokens - 1}", token, f"has {token}")


def _fingerprint(model_name: str, ready: Ready) -> str:
    """Changes with the server's version and the model."""
    parts: Sequence[str] = (__version__, model_name, ready.model_description, str(ready.model_bytes))
    return "fp_" + sha256("\n".join(parts).encode()).hexdigest()[:12]
