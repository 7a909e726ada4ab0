"""What operators do: look at requests and act on live ones, drop a tenant's cache or erase its data, read the journal.

And how the browser of an operator on this machine becomes one: `login_code` and `login`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway import schemas, schemas_admin
from poise.gateway.api.native.explanations import Explanation, explanation_of
from poise.gateway.api.native.timeline import timeline_of
from poise.gateway.auditing import Audit
from poise.gateway.engine_client import EngineClient, EngineUnavailable
from poise.gateway.engine_refusals import engine_unavailable
from poise.gateway.erasure import Erasure
from poise.gateway.errors import ApiError, invalid_value, kept_request_not_found, not_possible, request_not_found
from poise.gateway.explanations import Explainer
from poise.gateway.http.body import read_json
from poise.gateway.http.credentials import credentials_of
from poise.gateway.http.peers import is_direct
from poise.gateway.http.replies import fresh_json
from poise.gateway.journal import JournalRoom
from poise.gateway.record import CANCELLED, ENDED, QUEUED, ChoiceRecord, Record
from poise.gateway.records import Records
from poise.gateway.schemas_admin import QuarantineList
from poise.gateway.tenancy.operators import CODE_LIFE_S, LocalOperators
from poise.gateway.tenants import OPERATOR, Tenants
from poise.scheduler.request import Control, RequestClass

T = TypeVar("T")

LOGIN_BYTES_MAX, LOGIN_TIMEOUT_S = 1024, 5.0
ENDED_MAX = 200
"""Ended requests that are listed at once, at most."""


class Admin:
    """Answers /admin. Every answer is preceded by the check of who asks."""

    def __init__(
        self,
        engine: EngineClient,
        tenants: Tenants,
        records: Records,
        audit: Audit,
        erasure: Erasure,
        explainer: Explainer,
        operators: LocalOperators,
    ) -> None:
        self._operators = operators
        self._journal = JournalRoom(engine)
        self._engine = engine
        self._tenants = tenants
        self._records = records
        self._audit = audit
        self._erasure = erasure
        self._explainer = explainer

    async def login_code(self, request: Request) -> Response:
        """A code for the address of the dashboard, for who has this server's token."""
        if self._tenants.check_admin(credentials_of(request)).tenant != OPERATOR:
            message = "Codes are for operators on the server's machine. The dashboard takes your admin key as it is."
            raise ApiError(403, "admin_is_local", message)
        return fresh_json({"code": self._operators.new_code(), "expires_in_s": CODE_LIFE_S})

    async def login(self, request: Request) -> Response:
        """What the page sends as its key from now on, for a code."""
        code = (await read_json(request, LOGIN_BYTES_MAX, LOGIN_TIMEOUT_S)).get("code")
        token = self._operators.redeem(code) if isinstance(code, str) and is_direct(request.scope) else None
        if token is None:
            message = (
                "This code is over: it works once, for a minute, on the server's machine. Run `poise dashboard` again."
            )
            raise ApiError(401, "invalid_login_code", message, headers={"WWW-Authenticate": "Bearer"})
        return fresh_json({"key": token})

    async def requests(self, request: Request) -> Response:
        """Live requests, and with `ended=N` those that ended last: counts and states, no text."""
        self._tenants.check_admin(credentials_of(request))
        now_s, n_ended = time.perf_counter(), _n_ended(request.query_params.get("ended", "0"))
        live = [_row(record, now_s) for record in self._records.live()]
        ended = [_row(record, now_s) | _end(record) for record in self._records.ended(n_ended)]
        return fresh_json({"data": live, "ended": ended})

    async def view(self, request: Request) -> Response:
        """One request, live or ended: its counts, its timeline and its choices, no text."""
        self._tenants.check_admin(credentials_of(request))
        wanted = request.path_params["request_id"]
        record = self._records.find_live(wanted) or self._records.find(wanted, None)
        if record is None:
            raise kept_request_not_found(wanted)
        parts = {"choices": [_choice(record, choice) for choice in record.choices], "timeline": timeline_of(record)}
        return fresh_json(_row(record, time.perf_counter()) | _end(record) | parts)

    async def cancel(self, request: Request) -> Response:
        """End a live request, in whatever state it is. Its client gets what there is."""
        caller = self._tenants.check_admin(credentials_of(request))
        wanted = request.path_params["request_id"]
        record = self._records.find_live(wanted)
        if record is None or record.work is None:
            raise request_not_found(wanted)
        indices = [choice.index for choice in record.choices if choice.outcome is None]
        record.work.stop(CANCELLED)
        self._audit.operator(caller, "cancel", response=record.response_id)
        rows = [{"index": index, "state": ENDED, "detail": ""} for index in indices]
        return fresh_json({"id": record.response_id, "action": "cancel", "choices": rows})

    async def explanation(self, request: Request) -> Response:
        """Why a request, live or ended, took as long as it did; no text."""
        self._tenants.check_admin(credentials_of(request))
        wanted = request.path_params["request_id"]
        record = self._records.find_live(wanted) or self._records.find(wanted, None)
        if record is None:
            raise kept_request_not_found(wanted)
        return fresh_json(explanation_of(self._explainer.explain(record, None)))

    def controls(self, action: Control) -> Callable[[Request], Awaitable[Response]]:
        """The endpoint of one action."""

        async def control(request: Request) -> Response:
            caller = self._tenants.check_admin(credentials_of(request))
            body = await self._control(request.path_params["request_id"], action)
            self._audit.operator(caller, action.value, response=body["id"])
            return fresh_json(body)

        return control

    async def forget(self, request: Request) -> Response:
        """Drop every prefix that is kept for a tenant. Its live requests go on."""
        caller = self._tenants.check_admin(credentials_of(request))
        tenant = request.path_params["tenant"]
        freed = await _asked(self._engine.forget(tenant))
        self._audit.operator(caller, "forget", tenant=tenant)
        return fresh_json({"tenant": tenant, "entries": freed.entries, "cells": freed.cells})

    async def erase(self, request: Request) -> Response:
        """Erase what is held of a tenant, everywhere. Its live requests go on, unless `live=1` ends them first."""
        caller = self._tenants.check_admin(credentials_of(request))
        tenant = request.path_params["tenant"]
        live = request.query_params.get("live", "0")
        if live not in ("0", "1"):
            raise invalid_value("live", "be 0 or 1", live)
        records = [record for record in self._records.live() if record.origin.tenant == tenant]
        for work in [record.work for record in records if record.work is not None]:
            if live == "1":
                work.stop(CANCELLED)
        erased = await _asked(self._erasure.erase(tenant))
        self._audit.operator(caller, "erase", tenant=tenant, live=live == "1", **erased)
        ended, kept = (len(records), 0) if live == "1" else (0, len(records))
        return fresh_json({"tenant": tenant, "live_ended": ended, "live_kept": kept, "erased": erased})

    async def journal(self, request: Request) -> Response:
        """The engine's flight recorder: token counts and decisions, no text."""
        caller = self._tenants.check_admin(credentials_of(request))
        answer = await self._journal.open()
        self._audit.operator(caller, "journal")
        return answer

    async def quarantine(self, request: Request) -> Response:
        """Reports of requests that engines died computing: sizes and times, no text."""
        self._tenants.check_admin(credentials_of(request))
        return fresh_json({"data": [report.as_json() for report in self._engine.quarantined()]})

    async def _control(self, wanted: str, action: Control) -> dict[str, Any]:
        """On every choice of the request that has not ended. One that could be acted on makes it a success."""
        record = self._records.find_live(wanted)
        choices = record.work.requests() if record is not None and record.work is not None else []
        if record is None or not choices:
            raise request_not_found(wanted)
        answers = await _asked(asyncio.gather(*(self._engine.control(request_id, action) for _, request_id in choices)))
        if not any(answer.state for answer in answers):
            raise request_not_found(wanted)
        if all(answer.detail for answer in answers):
            raise not_possible(action.value, wanted, next(answer.detail for answer in answers if answer.state))
        rows = [
            {"index": index, "state": _shown_state(answer.state), "detail": answer.detail}
            for (index, _), answer in zip(choices, answers, strict=True)
        ]
        return {"id": record.response_id, "action": action.value, "choices": rows}


def add_admin(app: FastAPI, admin: Admin) -> None:
    """The routes of /admin."""
    app.add_api_route(
        "/admin/journal",
        admin.journal,
        summary="The engine's flight recorder, one JSON object a line",
        responses=schemas.lines() | schemas.errors(401, 403, 429, 503),
        response_class=Response,  # of no type of its own: its errors are JSON
    )
    app.add_api_route(
        "/admin/login-codes",
        admin.login_code,
        methods=["POST"],
        summary="A code that opens the dashboard once, for who has the server's token",
        responses=schemas.answer(schemas_admin.LoginCode) | schemas.errors(401, 403),
    )
    app.add_api_route(
        "/admin/login",
        admin.login,
        methods=["POST"],
        summary="What the dashboard sends as its key from now on, for a code",
        responses=schemas.answer(schemas_admin.Login) | schemas.errors(400, 401, 408, 413),
        openapi_extra=schemas_admin.LOGIN_BODY,
    )
    _add_requests(app, admin)
    app.add_api_route(
        "/admin/quarantine",
        admin.quarantine,
        summary="Requests that were ended because engines died computing them, without their text",
        responses=schemas.answer(QuarantineList) | schemas.errors(401, 403),
    )
    app.add_api_route(
        "/admin/tenants/{tenant}/data",
        admin.erase,
        methods=["DELETE"],
        summary="Erase what is held of a tenant",
        responses=schemas.answer(schemas_admin.TenantEraseResult) | schemas.errors(400, 401, 403, 503),
        openapi_extra={"parameters": [schemas.path_parameter("tenant"), schemas_admin.LIVE_PARAMETER]},
    )
    app.add_api_route(
        "/admin/tenants/{tenant}/cache",
        admin.forget,
        methods=["DELETE"],
        summary="Drop the cached prefixes of a tenant",
        responses=schemas.answer(schemas_admin.ForgetResult) | schemas.errors(401, 403, 503),
        openapi_extra={"parameters": [schemas.path_parameter("tenant")]},
    )


def _add_requests(app: FastAPI, admin: Admin) -> None:
    app.add_api_route(
        "/admin/requests",
        admin.requests,
        summary="List the live requests, and those that ended last, without their text",
        responses=schemas.answer(schemas_admin.LiveRequestList) | schemas.errors(400, 401, 403),
        openapi_extra={"parameters": [schemas_admin.ENDED_PARAMETER]},
    )
    app.add_api_route(
        "/admin/requests/{request_id}",
        admin.view,
        summary="How a request stands, or ended, without its text",
        responses=schemas.answer(schemas_admin.RequestView) | schemas.errors(401, 403, 404),
        openapi_extra={"parameters": [schemas.path_parameter("request_id")]},
    )
    app.add_api_route(
        "/admin/requests/{request_id}/cancel",
        admin.cancel,
        methods=["POST"],
        summary="End a live request; what there is of its result is kept",
        responses=schemas.answer(schemas_admin.ControlResult) | schemas.errors(401, 403, 404),
        openapi_extra={"parameters": [schemas.path_parameter("request_id")]},
    )
    app.add_api_route(
        "/admin/requests/{request_id}/explanation",
        admin.explanation,
        summary="Why a request, live or ended, took as long as it did, without its text",
        responses=schemas.answer(Explanation) | schemas.errors(401, 403, 404),
        openapi_extra={"parameters": [schemas.path_parameter("request_id")]},
    )
    for action in Control:
        app.add_api_route(
            f"/admin/requests/{{request_id}}/{action.value}",
            admin.controls(action),
            methods=["POST"],
            summary=f"{action.value.capitalize()} a live request",
            responses=schemas.answer(schemas_admin.ControlResult) | schemas.errors(401, 403, 404, 409, 503),
            openapi_extra={"parameters": [schemas.path_parameter("request_id")]},
        )


async def _asked(answer: Awaitable[T]) -> T:
    try:
        return await answer
    except EngineUnavailable as error:
        raise engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent) from None


def _row(record: Record, now_s: float) -> dict[str, Any]:
    origin, usage = record.origin, record.usage()
    return {
        "id": record.response_id,
        "request_id": origin.request_id,
        "tenant": origin.tenant,
        "class": (RequestClass.BACKGROUND if record.downgraded else origin.request_class).value,
        "state": record.state,
        "choices": sum(choice.outcome is None or record.is_ended for choice in record.choices),
        "prompt_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
        "age_ms": int((now_s - origin.arrived_s) * 1000),
    }


def _end(record: Record) -> dict[str, Any]:
    """How it ended, without the error's words: they quote the request."""
    took_s = record.ended_s - record.origin.arrived_s if record.ended_s is not None else None
    return {
        "took_ms": None if took_s is None else int(took_s * 1000),
        "outcome": record.outcome,
        "error": None if record.failure is None else record.failure.code,
    }


def _choice(record: Record, choice: ChoiceRecord) -> dict[str, Any]:
    return {
        "index": choice.index,
        "state": choice.state if choice.outcome is None and not record.is_ended else ENDED,
        "output_tokens": choice.n_output,
        "cached_tokens": choice.n_cached,
        "finish_reason": choice.finish_reason,
        "outcome": choice.outcome,
    }


def _n_ended(value: str) -> int:
    if value.isascii() and value.isdecimal() and len(value) <= len(str(ENDED_MAX)) and int(value) <= ENDED_MAX:
        return int(value)
    raise invalid_value("ended", f"be a number from 0 to {ENDED_MAX}", value)


def _shown_state(state: str) -> str:
    """The engine's word for a queued request is waiting; everywhere else in the API it is queued."""
    return {"waiting": QUEUED, "finished": ENDED, "": ENDED}.get(state, state)
