"""A model that may be answered here or by other servers: who does is decided before anything is begun, and, while nothing of an
answer is there, again.

    here    the request goes to the engine. As soon as it says how long the wait is, or that there is no place, that is held
            against the settings: if the request is to leave, the engine is to forget it
    there   each backend in the order of the decision, until one answers; this host may be the last of them

The canonical request is what is sent, whole: a context policy other than "reject" is this host's business."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256

import msgspec

from poise.config import Settings
from poise.config.classes import class_settings
from poise.gateway.models.backend import Backend, BackendState, Card, Job, close
from poise.gateway.models.egress.door import Egress
from poise.gateway.models.egress.permit import Permit
from poise.gateway.models.local.job import LocalJob
from poise.gateway.models.local.model import LocalModel
from poise.gateway.models.money.ledger import BudgetExhausted
from poise.gateway.models.remote.answer import NotAnswered, RemoteAnswer, about_tokens
from poise.gateway.models.remote.asked import needs
from poise.gateway.models.remote.model import RemoteModel
from poise.gateway.models.routing import policy
from poise.gateway.models.routing.labelling import Labelling
from poise.gateway.models.routing.policy import AUTO, LOCAL, Choice, Decision, LocalView, Wish
from poise.gateway.records.following import Stop
from poise.gateway.records.record import CANCELLED, Origin, Record
from poise.gateway.request import headers as names
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.labels import label_of
from poise.gateway.request.refusals import ApiError, internal_error, retry_after
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import Hold, RejectReason, RequestClass
from poise.wire.messages import Accepted, Refused

log = logging.getLogger(__name__)

_TOO_LONG = "context_length_exceeded"
_DOWN = ("engine_unavailable", "engine_failed")
_CROWDED = (RejectReason.QUEUE_FULL, RejectReason.QUEUE_SHARE)
NOWHERE = float("inf")
"""The wait for a place in a queue that is full."""


class Step(msgspec.Struct, frozen=True):
    """A backend that would be asked, or would not: why."""

    backend: str
    why: str


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """What would happen to a request. `wait_ms`, `prompt_ms`: for a slot here, and for its prompt's
    compute then; None without an engine. `order` is empty: it is refused."""

    model: str
    label: str
    sources: list[str]
    is_heavy: bool
    tokens: int
    needs: list[str]
    wait_ms: int | None
    prompt_ms: int | None
    order: list[Step]
    rejected: list[Step]
    error: str | None
    message: str | None


@dataclass(eq=False, repr=False)
class Routing:
    """All that decides where requests are answered, and the servers that may answer them."""

    settings: Settings
    local: LocalModel | None
    remotes: Mapping[str, RemoteModel]
    labelling: Labelling
    egress: Egress
    metrics: GatewayMetrics
    _switches: policy.Switches = field(init=False)

    def __post_init__(self) -> None:
        self._switches = policy.Switches.of(self.settings.egress)

    def decide(self, wish: Wish, tenant: str, request_class: RequestClass, local: LocalView | None) -> Decision:
        of_tenant, views = self._seen(tenant, request_class)
        return policy.decide(wish, of_tenant, local, views, self._switches, is_open=not self.egress.why_closed)

    def _seen(self, tenant: str, request_class: RequestClass) -> tuple[policy.TenantPolicy, list[policy.BackendView]]:
        views = [remote.view(request_class, tenant) for remote in self.remotes.values()]
        return policy.TenantPolicy.of(self.settings.tenant(tenant)), views

    def here(self, request: Generate | None = None) -> LocalView | None:
        """The engine of this host, before it was asked: for a request, with what it has told of last."""
        if self.local is None:
            return None
        wait_s = self.local.wait_s(request.request_class, about_tokens(request)) if request is not None else (0.0, 0.0)
        return LocalView(self.local.state.is_ready, *wait_s, self.local.card.context_length or 0)

    async def explain(self, request: Generate, origin: Origin, backend: Backend) -> Explained:
        """What would happen to it now. Nothing is begun, and nothing sent. Raises ApiError for what could be asked nowhere."""
        wanted = backend.wanted if isinstance(backend, RoutedModel) else LOCAL
        wish = await self.wish(request, origin, wanted, is_sent=False)
        view = self.here(request)
        decision = self.decide(wish, origin.tenant, origin.request_class, view)
        if view is not None and self.local is not None and decision.order and decision.order[0].backend == LOCAL:
            try:
                await self.local.prepare(request, origin)
            except ApiError as error:
                if (trouble := _trouble(error, view)) is None:
                    raise
                decision = self.decide(wish, origin.tenant, origin.request_class, trouble)
        refusal = decision.refusal
        return Explained(
            model=backend.card.name,
            label=wish.label.shown,
            sources=list(wish.sources),
            is_heavy=wish.is_heavy,
            tokens=wish.n_tokens,
            needs=sorted(wish.needs),
            wait_ms=None if view is None else int(view.wait_s * 1000),
            prompt_ms=None if view is None else int(view.prompt_s * 1000),
            order=[Step(choice.backend, choice.reason) for choice in decision.order],
            rejected=[Step(*rejected) for rejected in decision.rejected],
            error=None if refusal is None else refusal.code,
            message=None if refusal is None else refusal.message,
        )

    async def wish(self, request: Generate, origin: Origin, wanted: str, *, is_sent: bool = True) -> Wish:
        """What a request asks for, with the label that all of its text gives it. Raises ApiError."""
        n_tokens = about_tokens(request)
        limits = class_settings(self.settings, request.request_class)
        is_heavy = request.request_class is RequestClass.BACKGROUND or n_tokens > limits.heavy_tokens
        n_tokens += request.max_tokens or 0
        known = self.labelling.known(request, origin, (wanted,), is_sent=is_sent)
        about = (is_heavy, needs(request), n_tokens)
        wish = Wish(wanted, origin.may_fall_back, known.label, known.is_named, known.sources, *about)
        hit = label_of(self.settings.egress.hit_label)
        if not policy.depends_on_text(wish, *self._seen(origin.tenant, request.request_class), hit):
            return replace(wish, could_be=hit)
        read = await self.labelling.read(request, origin, (wanted,), is_sent=is_sent)
        return replace(wish, label=read.label, sources=read.sources)


class RoutedModel:
    """A Backend over this host's model, where there is one, and other servers; or over one server, which is asked for by name."""

    def __init__(self, name: str, routing: Routing, wanted: str = AUTO) -> None:
        self._name, self._routing, self.wanted = name, routing, wanted

    @property
    def card(self) -> Card:
        cards, local = [remote.card for remote in self._remotes], self._local
        cards += [local.card] if local is not None else []
        prefix = "" if self.wanted == AUTO else f"{self.wanted}/"
        others = [prefix + name for remote in self._remotes for name in remote.names] if local is None else []
        return Card(self._name, max((n for card in cards if (n := card.context_length)), default=None), tuple(others))

    @property
    def state(self) -> BackendState:
        if self._local is not None and self._local.state.is_ready:
            return self._local.state
        is_ready = any(remote.is_healthy for remote in self._remotes)
        return BackendState(is_ready, min((remote.retry_after_s for remote in self._remotes), default=1.0))

    @property
    def _local(self) -> LocalModel | None:
        return self._routing.local if self.wanted == AUTO else None

    @property
    def _remotes(self) -> list[RemoteModel]:
        return [remote for name, remote in self._routing.remotes.items() if self.wanted in (AUTO, name)]

    async def prepare(self, request: Generate, origin: Origin) -> Job:
        """Decided by everything that is known before anything is computed. Raises ApiError."""
        routing = self._routing
        wish = await routing.wish(request, origin, self.wanted)
        request = replace(request, model=request.model.removeprefix(f"{self.wanted}/"))
        view = routing.here()
        decision = routing.decide(wish, origin.tenant, request.request_class, view)
        if routing.local is not None and view is not None and decision.order and decision.order[0].backend == LOCAL:
            try:
                job = await routing.local.prepare(request, origin)
                assert isinstance(job, LocalJob)
                return RoutedJob(routing, request, wish, decision, job)
            except ApiError as error:
                if (trouble := _trouble(error, view)) is None:
                    raise
                decision = routing.decide(wish, origin.tenant, request.request_class, trouble)
                if not decision.order or decision.order[0].backend == LOCAL:
                    raise
        if decision.refusal is not None:
            refusal = decision.refusal
            if refusal.code == BudgetExhausted.code:
                raise next(gone for remote in self._remotes if (gone := remote.exhausted(origin.tenant)) is not None)
            retry = retry_after(self.state.retry_after_s) if refusal.status in (429, 503) else {}
            raise ApiError(refusal.status, refusal.code, refusal.message, headers=retry)
        return RoutedJob(routing, request, wish, decision, None)


class RoutedJob:
    """A request that is begun here, or elsewhere. `headers` say at any time who answers it."""

    def __init__(self, routing: Routing, request: Generate, wish: Wish, decision: Decision, local: LocalJob | None) -> None:
        self._routing, self._request, self._wish, self._decision, self._local = routing, request, wish, decision, local
        n_prompts = 1 if isinstance(request.prompt, Conversation) else len(request.prompt)
        self.n_choices = local.n_choices if local is not None else request.n * n_prompts
        self.fingerprint = local.fingerprint if local is not None else ""
        self.headers: dict[str, str] = dict(local.headers) if local is not None else {}
        self.ignored = local.ignored if local is not None else ()
        self.is_late = local is not None and local.is_late

    def start(self, record: Record) -> None:
        """Begin, once."""
        route = _Route(self._routing, record, self._request, self._wish, self.headers)
        local, self._local = self._local, None
        if local is None:
            route.follow(self._decision)
            return
        route.say(self._decision.order[0])
        assert self._routing.local is not None
        record.heading = replace(record.heading, model=self._routing.local.card.name)
        if not self.is_late:  # else its headers are sent, and they say who answers
            local.leaves = route.leaves
        local.start(record)


class _Route:
    """Work for a record that is answered by the first of several backends that does."""

    def __init__(self, routing: Routing, record: Record, request: Generate, wish: Wish, headers: dict[str, str]) -> None:
        self._routing, self._record, self._request, self._wish, self._headers = routing, record, request, wish, headers
        self._answer: RemoteAnswer | None = None
        self._task: asyncio.Task[None] | None = None

    def leaves(self, event: Accepted | Refused) -> bool:
        """The engine has said how long the wait is, or that it does not take the request: does another server get it?"""
        routing, origin = self._routing, self._record.origin
        if (view := routing.here()) is None or self._record.is_ended:
            return False
        if isinstance(event, Refused) and event.reason not in _CROWDED:
            return False  # a limit of the tenant's holds everywhere
        wait_s, prompt_s = (event.eta_us / 1e6, event.prompt_us / 1e6) if isinstance(event, Accepted) else (NOWHERE, 0.0)
        view = replace(view, wait_s=wait_s, prompt_s=prompt_s)
        decision = routing.decide(self._wish, origin.tenant, origin.request_class, view)
        if not decision.order or decision.order[0].backend == LOCAL:
            return False
        self._headers[names.FALLBACK_FROM] = LOCAL
        self.follow(decision)
        return True

    def follow(self, decision: Decision) -> None:
        """Ask the backends of the decision, one after the other."""
        self._record.start(self)
        self._task = asyncio.create_task(self._run(decision), name="route")

    def say(self, choice: Choice) -> None:
        """Who is asked now, for the response's headers and for the timeline."""
        remote = self._routing.remotes.get(choice.backend)
        shown = f"cloud:{choice.backend}" if remote is not None and remote.leaves_host else choice.backend
        self._headers |= {names.BACKEND: shown, names.ROUTE_REASON: choice.reason}
        self._record.note("routed", backend=shown, reason=choice.reason)

    async def _run(self, decision: Decision) -> None:
        error: ApiError | None = None
        try:
            for choice in decision.order:
                if self._record.is_ended:
                    return
                if error is not None and error.code == BudgetExhausted.code and choice.backend != LOCAL:
                    continue  # a budget sends nothing to another cloud
                try:
                    await self._ask(choice, decision)
                except NotAnswered as refusal:
                    error = error or refusal.error
                    self._record.note("not_answered", backend=choice.backend, why=refusal.error.code)
                    self._headers[names.FALLBACK_FROM] = choice.backend
                    if not refusal.is_retryable:
                        break
                except ApiError as refusal:  # of this host
                    error = error or refusal
                else:
                    return
            assert error is not None, "there is somebody in the order"
            self._end(error)
        except Exception as bug:
            self._end(internal_error(log_bug(log, self._record.origin.request_id, bug)))

    async def _ask(self, choice: Choice, decision: Decision) -> None:
        """Returns once it is answered, or this host has it. Raises NotAnswered, or ApiError."""
        routing, record, origin = self._routing, self._record, self._record.origin
        if choice.backend == LOCAL:
            assert routing.local is not None
            self._answer = None
            job = await routing.local.prepare(self._request, origin)
            if not record.is_ended:
                self.say(choice)
                record.heading = replace(record.heading, model=routing.local.card.name, fingerprint=job.fingerprint)
                job.start(record)
            return
        remote = routing.remotes[choice.backend]
        model = remote.model_for(self._request.model)
        self.say(choice)
        record.heading = replace(record.heading, model=model, fingerprint=fingerprint(remote.name, model))
        made = partial(policy.permit, decision, choice, self._wish, origin.tenant, origin.request_id)

        def permit_of() -> Permit:  # asked for when the request is written, before anything is shown of its answer
            if answer.ignored:
                names.warn(self._headers, f"without effect there: {names.list_ignored(answer.ignored)}")
            return made()

        self._answer = answer = remote.answer(self._request, record, permit_of)
        await answer.run()

    def _end(self, error: ApiError | None) -> None:
        """Nobody has answered, and nobody is asked any more."""
        if not self._record.is_ended:
            for choice in self._record.choices:
                choice.outcome = CANCELLED
            close(self._record, self._routing.metrics, error)

    def stop(self, why: Stop) -> None:
        """See `Work.stop`."""
        if self._answer is not None:
            self._answer.stop(why)
            return
        self._record.stopped_by = why
        self._end(None)
        if self._task is not None:
            self._task.cancel()

    def hold(self, level: Hold) -> None:
        if self._answer is not None:
            self._answer.hold(level)

    def requests(self) -> list[tuple[int, int]]:
        return []


def _trouble(error: ApiError, view: LocalView) -> LocalView | None:
    """What this host's refusal says of this host; None: it says something of the request, wherever it goes."""
    if error.code == _TOO_LONG:
        return replace(view, is_too_long=True)
    if error.code in _DOWN:
        return replace(view, is_ready=False)
    return replace(view, lacks=(error.param or error.code,)) if error.code == "unsupported_parameter" else None


def fingerprint(backend: str, model: str) -> str:
    """Of what computes an answer there, as far as that is known here."""
    return "fp_" + sha256(f"{backend}\n{model}".encode()).hexdigest()[:12]
