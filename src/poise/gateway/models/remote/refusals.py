"""What a client is told when another server does not answer: which one, what happened, what to do. Its own words are shown only
where they are about the request, and marked as its; no key, no address and no answer of an operator's matter is."""

from poise.gateway.models.egress.door import EgressError
from poise.gateway.models.remote.events import Failed, failure_of
from poise.gateway.request.refusals import ApiError, later, retry_after
from poise.scheduler.request import Rejected, RejectReason, RequestClass

_RETRY_S = 5.0
_RETRY_KEY_S = 60.0
_SAID_MAX = 500
_RETRYABLE = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
_CLOSED = {
    "closed": ("egress_closed", "Nothing may leave this host now"),
    "no_audit": ("audit_unavailable", "Nothing leaves this host while its audit log cannot be written"),
}
_BROKEN = {
    "tls": "could not prove who it is (TLS)",
    "redirect": "sent the request on to another address, which is not followed",
    "too_large": "sent more than an answer may have",
    "encoding": "sent a compressed answer, which was not asked for",
    "broken": "broke off",
}


def not_queued(backend: str, request_class: RequestClass, refusal: Rejected) -> ApiError:
    """There is no place in the queue, with the queue's own numbers."""
    value, limit = refusal.value, refusal.limit
    queue = f"The queue of class '{request_class}' for the backend '{backend}'"
    match refusal.reason:
        case RejectReason.QUEUE_SHARE:
            code = "queue_share_full"
            message = (
                f"{queue} has {value} requests of yours, and {limit} may wait now: the other places are kept for others. "
                "Let some of them end first, or try again"
            )
        case RejectReason.TENANT_QUEUE_FULL:
            code = "tenant_queue_full"
            message = (
                f"{queue} has {value} requests of your tenant, and {limit} may wait. Let some of them end first, or try again"
            )
        case RejectReason.TENANT_RATE:
            code = "rate_limit_exceeded"
            message = f"Your tenant may use {limit} tokens per minute, and they are used up at the backend '{backend}'. Try again"
        case _:
            code, message = "queue_full", f"{queue} is full: {value} requests wait, {limit} may. Try again"
    return later(429, code, message, refusal.retry_after_us / 1e6)


def queue_timeout(backend: str, timeout_s: float, retry_after_s: float) -> ApiError:
    """The request waited as long as it may; nothing was sent."""
    message = f"The request still waited for the backend '{backend}' after {timeout_s:g} s, its 'queue_timeout'. Try again"
    return later(503, "queue_timeout", message, retry_after_s, ", or let it wait longer")


def unavailable(backend: str, why: str, retry_after_s: float | None) -> ApiError:
    return later(503, "backend_unavailable", f"The backend '{backend}' {why}. Try again", retry_after_s or _RETRY_S)


def locked(backend: str) -> ApiError:
    """It does not take this server's key."""
    message = f"The backend '{backend}' does not let this server in. Its operator must mend the key of backends.{backend}."
    return ApiError(502, "backend_unauthorized", message, headers=retry_after(_RETRY_KEY_S))


def of_egress(backend: str, model: str, error: EgressError) -> ApiError:
    """What became of sending it."""
    if error.kind in _CLOSED:
        code, message = _CLOSED[error.kind]
        return later(503, code, f"{message}, so the backend '{backend}' was not asked. Try again", _RETRY_S)
    if error.kind == "connect":
        return unavailable(backend, "cannot be reached", error.retry_after_s)
    if error.kind == "timeout":
        return later(504, "backend_timeout", f"The backend '{backend}' sent nothing for too long. Try again", _RETRY_S)
    if error.kind == "status" and error.status is not None:
        return of_status(backend, model, failure_of(error.body, error.status), error.status, error.retry_after_s)
    return broken(backend, _BROKEN.get(error.kind, "failed"))


def of_failure(backend: str, model: str, failed: Failed) -> ApiError:
    """What stood in an answer that had begun, or in place of one."""
    if failed.status is not None:
        return of_status(backend, model, failed, failed.status, None)
    return broken(backend, f"failed: {_said(failed)}")


def may_answer_elsewhere(failed: Failed) -> bool:
    return failed.status is None or failed.status in _RETRYABLE


def broken(backend: str, what: str) -> ApiError:
    message = f"The backend '{backend}' {what}. Try again; if it stays so, its operator has to look at it."
    return ApiError(502, "backend_failed", message)


def of_status(backend: str, model: str, failed: Failed, status: int, retry_after_s: float | None) -> ApiError:
    """By the status that it answered with."""
    match status:
        case 400 | 422:
            code = failed.code if failed.code == "context_length_exceeded" else "backend_refused"
            return ApiError(400, code, f"The backend '{backend}' refused the request: {_said(failed)}")
        case 401 | 403:
            return locked(backend)
        case 404:
            message = (
                f"The backend '{backend}' has no model '{model}'. Its operator can name another in backends.{backend}.model."
            )
            return ApiError(404, "model_not_found", message, param="model")
        case 413:
            message = f"The request is too large for the backend '{backend}'. Send a shorter one."
            return ApiError(413, "request_too_large", message)
        case 429:
            message = f"The backend '{backend}' takes no more requests from this server now. Try again"
            return later(429, "backend_rate_limited", message, retry_after_s or _RETRY_S)
        case 408 | 409 | 503 | 529:
            return unavailable(backend, f"cannot answer now (status {status})", retry_after_s)
        case _:
            return broken(backend, f"failed with status {status}")


def _said(failed: Failed) -> str:
    """Its words, as its."""
    text = " ".join(failed.message.split())
    return f'"{text[:_SAID_MAX]}{"…" if len(text) > _SAID_MAX else ""}"'
