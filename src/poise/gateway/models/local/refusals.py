"""Refusals of the local engine: of its scheduler, of its state, and of what became of a request in it."""

import logging
from collections.abc import Iterable

from poise.gateway.records.record import Origin
from poise.gateway.request.refusals import (
    ApiError,
    context_length_exceeded,
    internal_error,
    later,
    new_error_id,
    retry_after,
    server_stopping,
    shown,
    without_folders,
)
from poise.gateway.supervision.engine import QUARANTINED, SERVER_STOPPING, EnginePhase, EngineState
from poise.scheduler.request import FinishReason, RejectReason
from poise.wire.fingerprint import MODEL_CHANGED
from poise.wire.messages import STRUCTURE_FAILED, Finish, Refused

log = logging.getLogger(__name__)

_RETRY_FAILED_S = 60.0


def template_not_found(name: str, known: Iterable[str]) -> ApiError:
    """`known`: the names that this caller may use. The answer says nothing of others, not even that they exist."""
    names = ", ".join(map(shown, known))
    hint = f"You may use: {names}." if names else "None is declared for you."
    return ApiError(400, "template_not_found", f"There is no template {shown(name)} for you. {hint}", param="template")


def summary_failed(reason: str) -> ApiError:
    message = f"The older turns could not be summarized: {reason}. Shorten the conversation or use 'context_policy': 'trim'."
    return ApiError(500, "summary_failed", message, param="context_policy")


def refused(event: Refused, request_class: str, param: str) -> ApiError:
    """The scheduler's refusal on arrival, with its own numbers."""
    value, limit, otherwise = event.value, event.limit, ""
    match event.reason:
        case RejectReason.TOO_LONG:
            message = f"The prompt is too long: {value} tokens > {limit} maximum."
            return context_length_exceeded(message, "Shorten the prompt.", param)
        case RejectReason.QUEUE_FULL:
            code = "queue_full"
            message = f"The queue of class '{request_class}' is full: {value} requests wait, {limit} may. Try again"
        case RejectReason.QUEUE_SHARE:
            code = "queue_share_full"
            message = (
                f"You have {value} requests waiting in the queue of class '{request_class}', and {limit} may wait now: "
                "the other places are kept for others. Let some of them end first, or try again"
            )
        case RejectReason.TENANT_QUEUE_FULL:
            code = "tenant_queue_full"
            message = f"Your tenant has {value} requests waiting, and {limit} may wait. Let some of them end first, or try again"
        case RejectReason.TENANT_RATE:
            code = "rate_limit_exceeded"
            message = (
                f"Your tenant may use {limit} tokens per minute, and they are used up for now; the prompt has {value}. Try again"
            )
            otherwise = ", or ask the operator for more"
        case _:
            raise AssertionError(f"unknown reason {event.reason!r}")
    return later(429, code, message, event.retry_after_us / 1e6, otherwise)


def queue_timeout(timeout_s: float, retry_after_s: float) -> ApiError:
    """The request waited as long as it may; nothing was computed."""
    message = f"The request was still queued after {timeout_s:g} s, its 'queue_timeout'. Try again"
    return later(503, "queue_timeout", message, retry_after_s, ", or let it wait longer")


def engine_unavailable(message: str, retry_after_s: float, *, permanent: bool = False) -> ApiError:
    """No engine takes requests now. `permanent`: a restart would end the same way, so only the operator can help."""
    message = without_folders(message)
    if permanent:
        text = f"The engine has stopped and needs its operator: {message}"
        return ApiError(503, "engine_failed", text, headers=retry_after(_RETRY_FAILED_S))
    text = f"The engine cannot take requests now: {message}. Try again"
    return later(503, "engine_unavailable", text, retry_after_s)


def engine_not_ready(state: EngineState) -> ApiError:
    """The same, by the engine's state."""
    if state.phase is EnginePhase.FAILED:
        return engine_unavailable(state.detail or "it failed", state.retry_after_s, permanent=True)
    about = f"{state.phase.value}, {state.stage}" if state.stage else state.phase.value
    if state.model_changed:
        about = MODEL_CHANGED
    return engine_unavailable(about, state.retry_after_s)


def bad_end(finish: Finish, origin: Origin, state: EngineState) -> ApiError:
    """A bad end, as the client sees it. The engine's own words are for the log: they may name files and the like."""
    if finish.reason == FinishReason.FAILED:
        error_id = new_error_id()
        log.error("[%s] failed in the engine, %s: %s", origin.request_id, error_id, finish.detail)
        if not finish.detail.startswith(STRUCTURE_FAILED):
            return internal_error(error_id)
        text = f"The answer's grammar could not be followed to its end (error id {error_id}). Simplify it, or try again."
        return ApiError(500, "structured_output_failed", text)
    if finish.reason == FinishReason.EXPIRED:
        figures = state.status.classes.get(origin.request_class) if state.status is not None else None
        return queue_timeout(origin.queue_timeout_ms / 1000, figures.wait_estimate_us / 1e6 if figures else 1.0)
    if finish.reason == QUARANTINED:
        # It would end the next engine, too, so the refusal names no time to come back.
        message = (
            "The engine died repeatedly while it computed this request alone, so the request was ended for good. Change it "
            "before you send it again; the server's log has a report for its operator."
        )
        return ApiError(500, "request_quarantined", message)
    if finish.reason == SERVER_STOPPING:
        return server_stopping()
    text = "The engine was lost while it computed this request. Try again"
    return later(503, "engine_lost", text, state.retry_after_s)
