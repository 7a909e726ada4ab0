"""What operators do: look at requests and act on live ones, drop a tenant's cache or erase its data, read the journal.

And how the browser of an operator on this machine becomes one: `login_code` and `login`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.api.native.journal import JournalRoom
from poise.gateway.api.native.views import Explanation, RequestMoment, choice_view_of, explanation_of, timeline_of, view_of
from poise.gateway.api.operation import Described, Operation, parameter
from poise.gateway.explain.explainer import Explainer
from poise.gateway.http.body import read_json
from poise.gateway.http.connections.peers import credentials_of, is_direct
from poise.gateway.models.local.refusals import engine_unavailable
from poise.gateway.records.changes import RequestState
from poise.gateway.records.following import Stop
from poise.gateway.records.kept import Records
from poise.gateway.records.moments import ChoiceState
from poise.gateway.records.record import ENDED, QUEUED, Record
from poise.gateway.records.values import one_of
from poise.gateway.request.refusals import ApiError, invalid_value, kept_request_not_found, not_possible, request_not_found
from poise.gateway.supervision.blame import QuarantineReport
from poise.gateway.supervision.engine import EngineProcess, EngineUnavailable
from poise.gateway.tenancy.auditing import Audit
from poise.gateway.tenancy.erasure import Eraser, erase_everywhere
from poise.gateway.tenancy.tenants import CODE_LIFE_S, OPERATOR, LocalOperators, Tenants
from poise.scheduler.request import Control
from poise.scheduler.sequence import State

T = TypeVar("T")
LiveState = Annotated[str, one_of(*(state for state in RequestState if state is not RequestState.ENDED))]

LOGIN_BYTES_MAX, LOGIN_TIMEOUT_S = 1024, 5.0
ENDED_MAX = 200
"""Ended requests that are listed at once, at most."""
_LOGIN = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
_N_ENDED = {"type": "integer", "minimum": 0, "maximum": ENDED_MAX}
_ENDED = parameter("ended", "And so many of those that ended last and are kept.", _N_ENDED)
_LIVE = parameter("live", "1: end the tenant's live requests as well.", {"type": "string", "enum": ["0", "1"]})


class LoginCode(msgspec.Struct, frozen=True):
    code: str
    expires_in_s: float


class Login(msgspec.Struct, frozen=True):
    key: str


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    id: str
    request_id: str
    tenant: str
    class_: str
    state: ChoiceState
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    age_ms: int


class LiveRequest(RequestCounts, frozen=True, kw_only=True):
    state: LiveState
    choices: int


class EndedRequest(RequestCounts, frozen=True, kw_only=True):
    state: Annotated[str, one_of(ENDED)]
    choices: int
    took_ms: int
    outcome: str
    error: str | None


class LiveRequestList(msgspec.Struct, frozen=True):
    data: list[LiveRequest]
    ended: list[EndedRequest]


class ChoiceCounts(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    state: ChoiceState
    output_tokens: int
    cached_tokens: int
    finish_reason: str | None
    outcome: str | None


class RequestView(RequestCounts, frozen=True, kw_only=True):
    """A request as operators see it: without its text."""

    choices: list[ChoiceCounts]
    took_ms: int | None
    outcome: str | None
    error: str | None
    timeline: list[RequestMoment]


class ControlledChoice(msgspec.Struct, frozen=True):
    index: int
    state: ChoiceState
    detail: str


class ControlResult(msgspec.Struct, frozen=True):
    id: str
    action: Annotated[str, one_of(*Control, "cancel")]
    choices: list[ControlledChoice]


class ForgetResult(msgspec.Struct, frozen=True):
    tenant: str
    entries: int
    cells: int


class TenantEraseResult(msgspec.Struct, frozen=True):
    tenant: str
    live_ended: int
    live_kept: int
    erased: dict[str, int]


class QuarantineList(msgspec.Struct, frozen=True):
    data: list[QuarantineReport]


@dataclass(eq=False, repr=False)
class Admin:
    """Answers /admin. Every answer is preceded by the check of who asks."""

    _engine: EngineProcess
    _journal: JournalRoom
    _tenants: Tenants
    _records: Records
    _audit: Audit
    _erasers: Sequence[Eraser]
    _explainer: Explainer
    _operators: LocalOperators

    def operations(self) -> list[Operation]:
        lines = {200: Described(None, "JSON lines.", {"application/x-ndjson": {"type": "string"}})}
        recorder = "The engine's flight recorder, one JSON object a line"
        code = "A code that opens the dashboard once, for who has the server's token"
        login = "What the dashboard sends as its key from now on, for a code"
        dead = "Requests that were ended because engines died computing them, without their text"
        data, cache = "/admin/tenants/{tenant}/data", "/admin/tenants/{tenant}/cache"
        erase = "Erase what is held of a tenant"
        return [
            Operation("GET", "/admin/journal", self.journal, recorder, [401, 403, 429, 503], answers=lines),
            Operation("POST", "/admin/login-codes", self.login_code, code, [401, 403]),
            Operation("POST", "/admin/login", self.login, login, [400, 401, 408, 413], request=_LOGIN),
            *self._request_operations(),
            Operation("GET", "/admin/quarantine", self.quarantine, dead, [401, 403]),
            Operation("DELETE", data, self.erase, erase, [400, 401, 403, 503], parameters=[_LIVE]),
            Operation("DELETE", cache, self.forget, "Drop the cached prefixes of a tenant", [401, 403, 503]),
        ]

    def _request_operations(self) -> list[Operation]:
        path = "/admin/requests/{request_id}"
        listed = "List the live requests, and those that ended last, without their text"
        cancel = "End a live request; what there is of its result is kept"
        why = "Why a request, live or ended, took as long as it did, without its text"
        live, errors = "a live request", [401, 403, 404, 409, 503]
        return [
            Operation("GET", "/admin/requests", self.requests, listed, [400, 401, 403], parameters=[_ENDED]),
            Operation("GET", path, self.view, "How a request stands, or ended, without its text", [401, 403, 404]),
            Operation("POST", f"{path}/cancel", self.cancel, cancel, [401, 403, 404]),
            Operation("GET", f"{path}/explanation", self.explanation, why, [401, 403, 404]),
            *(
                Operation("POST", f"{path}/{a.value}", self.controls(a), f"{a.value.capitalize()} {live}", errors)
                for a in Control
            ),
        ]

    async def login_code(self, request: Request) -> LoginCode:
        """A code for the address of the dashboard, for who has this server's token."""
        if self._tenants.check_admin(credentials_of(request)).tenant != OPERATOR:
            message = "Codes are for operators on the server's machine. The dashboard takes your admin key as it is."
            raise ApiError(403, "admin_is_local", message)
        return LoginCode(self._operators.new_code(), CODE_LIFE_S)

    async def login(self, request: Request) -> Login:
        """What the page sends as its key from now on, for a code."""
        code = (await read_json(request, LOGIN_BYTES_MAX, LOGIN_TIMEOUT_S)).get("code")
        token = self._operators.redeem(code) if isinstance(code, str) and is_direct(request.scope) else None
        if token is None:
            why = "This code is over: it works once, for a minute, on the server's machine. Run `poise dashboard` again."
            raise ApiError(401, "invalid_login_code", why, headers={"WWW-Authenticate": "Bearer"})
        return Login(token)

    async def requests(self, request: Request) -> LiveRequestList:
        """Live requests, and with `ended=N` those that ended last: counts and states, no text."""
        self._tenants.check_admin(credentials_of(request))
        last = self._records.ended(_n_ended(request.query_params.get("ended", "0")))
        live = [LiveRequest(**_counts(record), choices=_n_choices(record)) for record in self._records.live()]
        ended = [EndedRequest(**_counts(record), **_end(record), choices=_n_choices(record)) for record in last]
        return LiveRequestList(live, ended)

    async def view(self, request: Request) -> RequestView:
        """One request, live or ended: its counts, its timeline and its choices, no text."""
        self._tenants.check_admin(credentials_of(request))
        record = self._kept(request)
        choices = [
            ChoiceCounts(**choice_view_of(record, choice), output_tokens=choice.n_output, cached_tokens=choice.n_cached)
            for choice in record.choices
        ]
        return RequestView(**_counts(record), **_end(record), choices=choices, timeline=timeline_of(record))

    async def cancel(self, request: Request) -> ControlResult:
        """End a live request, in whatever state it is. Its client gets what there is."""
        caller = self._tenants.check_admin(credentials_of(request))
        wanted = request.path_params["request_id"]
        record = self._records.find_live(wanted)
        if record is None or record.work is None:
            raise request_not_found(wanted)
        indices = [choice.index for choice in record.choices if choice.outcome is None]
        record.work.stop(Stop.CANCELLED)
        self._audit.operator(caller, "cancel", response=record.response_id)
        return ControlResult(record.response_id, "cancel", [ControlledChoice(index, ENDED, "") for index in indices])

    async def explanation(self, request: Request) -> Explanation:
        """Why a request, live or ended, took as long as it did; no text."""
        self._tenants.check_admin(credentials_of(request))
        return explanation_of(self._explainer.explain(self._kept(request), None))

    def controls(self, action: Control) -> Callable[[Request], Awaitable[ControlResult]]:
        """The endpoint of one action."""

        async def control(request: Request) -> ControlResult:
            caller = self._tenants.check_admin(credentials_of(request))
            result = await self._control(request.path_params["request_id"], action)
            self._audit.operator(caller, action.value, response=result.id)
            return result

        return control

    async def forget(self, request: Request) -> ForgetResult:
        """Drop every prefix that is kept for a tenant. Its live requests go on."""
        caller = self._tenants.check_admin(credentials_of(request))
        tenant = request.path_params["tenant"]
        freed = await _asked(self._engine.forget(tenant))
        self._audit.operator(caller, "forget", tenant=tenant)
        return ForgetResult(tenant, freed.entries, freed.cells)

    async def erase(self, request: Request) -> TenantEraseResult:
        """Erase what is held of a tenant, everywhere. Its live requests go on, unless `live=1` ends them first."""
        caller = self._tenants.check_admin(credentials_of(request))
        tenant = request.path_params["tenant"]
        live = request.query_params.get("live", "0")
        if live not in ("0", "1"):
            raise invalid_value("live", "be 0 or 1", live)
        records = [record for record in self._records.live() if record.origin.tenant == tenant]
        for work in [record.work for record in records if record.work is not None]:
            if live == "1":
                work.stop(Stop.CANCELLED)
        erased = await _asked(erase_everywhere(self._erasers, tenant))
        self._audit.operator(caller, "erase", tenant=tenant, live=live == "1", **erased)
        ended, kept = (len(records), 0) if live == "1" else (0, len(records))
        return TenantEraseResult(tenant, ended, kept, erased)

    async def journal(self, request: Request) -> Response:
        """The engine's flight recorder: token counts and decisions, no text."""
        caller = self._tenants.check_admin(credentials_of(request))
        answer = await self._journal.open()
        self._audit.operator(caller, "journal")
        return answer

    async def quarantine(self, request: Request) -> QuarantineList:
        """Reports of requests that engines died computing: sizes and times, no text."""
        self._tenants.check_admin(credentials_of(request))
        return QuarantineList(self._engine.quarantined())

    async def _control(self, wanted: str, action: Control) -> ControlResult:
        """Act on every choice of the request that has not ended. It succeeds if one of them could be acted on."""
        record = self._records.find_live(wanted)
        choices = record.work.requests() if record is not None and record.work is not None else []
        if record is None or not choices:
            raise request_not_found(wanted)
        answers = await _asked(asyncio.gather(*(self._engine.control(request_id, action) for _, request_id in choices)))
        if not any(answer.state for answer in answers):
            raise request_not_found(wanted)
        if all(answer.detail for answer in answers):
            raise not_possible(action.value, wanted, next(answer.detail for answer in answers if answer.state))
        # The engine's word for a queued request is waiting; everywhere else in the API it is queued.
        words = {State.WAITING: QUEUED, State.FINISHED: ENDED, "": ENDED}
        rows = [
            ControlledChoice(index, words.get(answer.state, answer.state), answer.detail)
            for (index, _), answer in zip(choices, answers, strict=True)
        ]
        return ControlResult(record.response_id, action.value, rows)

    def _kept(self, request: Request) -> Record:
        """The request that an operator named, live or ended."""
        wanted = request.path_params["request_id"]
        record = self._records.find_live(wanted) or self._records.find(wanted, None)
        if record is None:
            raise kept_request_not_found(wanted)
        return record


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except EngineUnavailable as error:
        raise engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent) from None


def _counts(record: Record) -> dict[str, Any]:
    """The fields of both lists and of a single request's view."""
    usage = record.usage()
    return view_of(record) | {
        "tenant": record.origin.tenant,
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }


def _n_choices(record: Record) -> int:
    """How many choices have not ended; of a request that has ended, all."""
    return sum(choice.outcome is None or record.is_ended for choice in record.choices)


def _end(record: Record) -> dict[str, Any]:
    """How it ended, without the error's words: they quote the request."""
    took_s = record.ended_s - record.origin.arrived_s if record.ended_s is not None else None
    return {
        "took_ms": None if took_s is None else int(took_s * 1000),
        "outcome": record.outcome,
        "error": None if record.failure is None else record.failure.code,
    }


def _n_ended(value: str) -> int:
    if value.isascii() and value.isdecimal() and len(value) <= len(str(ENDED_MAX)) and int(value) <= ENDED_MAX:
        return int(value)
    raise invalid_value("ended", f"be a number from 0 to {ENDED_MAX}", value)
