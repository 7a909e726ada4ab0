"""Every error a client can see, in OpenAI's format, and where each one comes from.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

A message names the value that was found, the limit it broke and what to do about it. `code` is stable and meant for programs;
`type` follows from the status alone. Nothing else in the gateway writes an error body."""

import difflib
import math
import re
import secrets
from collections.abc import Iterable, Sequence

import msgspec

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
"""By status; any other is an `invalid_request_error`, or from 500 on a `server_error`."""
_SHOWN_CHARS = 60
_PATH = re.compile(r"(?<![\w./:])/(?:[^\s/:;,'\"()]+/)+([^\s/:;,'\"()]+)")
_RETRY_STOPPED_S = 5.0
_WAITED_MAX_S = 60
"""Official SDKs keep to a Retry-After of up to a minute; a longer one they do not wait for."""
SHOULD_RETRY = "x-should-retry"


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """Every answer that is not a result."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not a result. Raised anywhere below a route; rendered once, at the edge (`http.replies`)."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}

    @property
    def answer_headers(self) -> dict[str, str]:
        """Those of an answer, with the word that official SDKs go by: whether to send the same request again."""
        again = self.status == 408 or 0 < int(self.headers.get("Retry-After", "0")) <= _WAITED_MAX_S
        return {SHOULD_RETRY: "true" if again else "false"} | self.headers

    def afresh(self) -> "ApiError":
        """The same error, never raised: one that was holds the frames that it went through, and whatever is in them."""
        return ApiError(self.status, self.code, self.message, param=self.param, headers=self.headers)

    def detail(self) -> ErrorDetail:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return ErrorDetail(self.message, kind, self.param, self.code)

    def body(self) -> bytes:
        """The JSON object, also used as the last event of a stream that failed."""
        return msgspec.json.encode(ErrorBody(self.detail()))


class ClientGone(Exception):
    """The client closed the connection before its answer was complete. Nobody is left to be answered."""


def shown(value: object) -> str:
    """A value as JSON for an error message, cut to a length that a person reads."""
    if isinstance(value, list | dict) and len(value) > 8:
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)} entries"
    if isinstance(value, str):
        value = value[: _SHOWN_CHARS + 1]
    try:
        text = msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, RecursionError):
        text = ascii(value)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"


def without_folders(text: str) -> str:
    """Paths cut to their last part: where files lie is nobody's business who only uses the server."""
    return _PATH.sub(r"\1", text)


def invalid_type(param: str, wanted: str, value: object) -> ApiError:
    return ApiError(400, "invalid_type", f"'{param}' must be {wanted}, but is {shown(value)}.", param=param)


def invalid_value(param: str, rule: str, value: object, found: str = "") -> ApiError:
    """`rule` completes the sentence "'param' must ..."; `found` replaces "is <value>" where that would say little."""
    return ApiError(400, "invalid_value", f"'{param}' must {rule}, but {found or f'is {shown(value)}'}.", param=param)


def missing_parameter(param: str, hint: str) -> ApiError:
    return ApiError(400, "missing_required_parameter", f"'{param}' is missing: {hint}.", param=param)


def conflicting_parameters(one: str, value: object, other: str, other_value: object) -> ApiError:
    """Two names of one thing, each as the caller wrote it."""
    text = f"'{one}' ({shown(value)}) and '{other}' ({shown(other_value)}) mean the same, but differ. Send one of them."
    return ApiError(400, "conflicting_parameters", text, param=other)


def unknown_parameter(param: str, name: str, known: Iterable[str], hint: str = "") -> ApiError:
    """`name` is the last part of `param`; `known` are the names it might have been meant to be."""
    if not hint:
        close = difflib.get_close_matches(name[:_SHOWN_CHARS], list(known), n=1)
        hint = f"Did you mean '{close[0]}'?" if close else "Remove it; /openapi.json lists what is known."
    path = param if len(param) <= 2 * _SHOWN_CHARS else param[: 2 * _SHOWN_CHARS] + "…"
    return ApiError(400, "unknown_parameter", f"Unknown parameter {shown(path)}. {hint}", param=path)


def invalid_structure(param: str, kind: str, why: str) -> ApiError:
    """What an answer must be cannot be followed, and is never left out."""
    message = f"'{param}' cannot be followed: {why.rstrip('.')}. Leave out what is named, and say it in the prompt."
    if kind in ("schema", "json_object", "structural_tag"):
        return ApiError(400, "invalid_schema", message, param=param)
    return ApiError(400, "invalid_grammar", message, param=param)


def unsupported_parameter(param: str, value: object, hint: str) -> ApiError:
    message = f"'{param}' is not supported (found {shown(value)}): {hint}."
    return ApiError(400, "unsupported_parameter", message, param=param)


def context_length_exceeded(message: str, hint: str, param: str) -> ApiError:
    """`message` has the numbers, `hint` what to do about them."""
    return ApiError(400, "context_length_exceeded", f"{message} {hint}", param=param)


def text_rejected(reason: str) -> ApiError:
    """Its text cannot be made into tokens here, however often it is sent."""
    message = (
        f"This text cannot be tokenised here: {reason}. Send a shorter one, or one with fewer letters in a row: "
        "the tokenisers of some models cannot take long runs without white space."
    )
    return ApiError(400, "text_rejected", message)


def text_queue_full(retry_after_s: float) -> ApiError:
    message = "Too much of your text waits to be tokenised. Let some of your requests get that far first, or try again"
    return later(429, "text_queue_full", message, retry_after_s)


def text_unavailable(why: str, retry_after_s: float) -> ApiError:
    message = f"No text worker took this request in time: {why}. Try again"
    return later(503, "text_unavailable", message, retry_after_s)


def model_not_found(model: str, known: Iterable[str]) -> ApiError:
    """`known`: the names and patterns that would do."""
    names = ", ".join(f"'{name}'" for name in known)
    message = (
        f"The model {shown(model)} does not exist here. Known: {names}. The server's settings can let a name in: with an entry "
        "under [aliases], or any name with model.any_name = true."
    )
    return ApiError(404, "model_not_found", message, param="model")


def not_found(path: str, known: Sequence[str] = ()) -> ApiError:
    """`known`: the paths that may have been meant."""
    ends = [one for one in known if len(one) > 1 and path.endswith(one.removeprefix("/v1"))]
    close = [max(ends, key=len)] if ends else difflib.get_close_matches(path[-_SHOWN_CHARS:], known, n=1, cutoff=0.75)
    hint = f"Did you mean '{close[0]}'?" if close else "Chats are at '/v1/chat/completions'; /openapi.json lists all endpoints."
    return ApiError(404, "not_found", f"There is nothing at {shown(path)}. {hint}")


def method_not_allowed(method: str, path: str, headers: dict[str, str]) -> ApiError:
    """`headers` has the Allow of the route."""
    allowed = ", ".join(sorted((headers.get("Allow") or headers.get("allow", "GET")).split(", ")))
    message = f"{shown(path)} does not answer {shown(method)}; it answers {allowed}."
    return ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})


def body_too_large(limit: int, found: str) -> ApiError:
    message = f"The request body has {found} bytes, but at most {limit} are accepted. Send a shorter request."
    return ApiError(413, "request_too_large", message)


def request_not_found(request_id: str) -> ApiError:
    text = f"There is no live request {shown(request_id)}: it has ended, or never was. GET /admin/requests lists them."
    return ApiError(404, "request_not_found", text)


def kept_request_not_found(request_id: str) -> ApiError:
    """As operators are answered, who may see everybody's."""
    message = (
        f"There is no request {shown(request_id)}: it never was, was erased, or ended longer ago than results.retention_s. "
        "GET /admin/requests?ended=200 lists those that are kept."
    )
    return ApiError(404, "request_not_found", message)


def response_not_found(wanted: str) -> ApiError:
    """The same for one that never was and for another tenant's: the answer does not even say that it exists."""
    message = (
        f"You have no request {shown(wanted)} here: it never was, was erased, or ended longer ago than results.retention_s. "
        "GET /v1/requests lists yours."
    )
    return ApiError(404, "request_not_found", message)


def not_possible(action: str, request_id: str, reason: str) -> ApiError:
    """What somebody wants of a request in the wrong state. No text of a request is in `reason`."""
    return ApiError(409, "not_possible", f"Cannot {action} {shown(request_id)}: {reason}.")


def journal_is_read(retry_after_s: float) -> ApiError:
    return later(429, "journal_is_read", "The journal is being read, and by one at a time. Try again", retry_after_s)


def server_stopping() -> ApiError:
    message = "The server is stopping and had to end this request before it began. Send it again, to another server or later."
    return ApiError(503, "server_stopping", message, headers=retry_after(_RETRY_STOPPED_S))


def draining(seconds: float) -> ApiError:
    """`seconds` is what is left of the time for draining; a server that is started again answers after it at the earliest."""
    headers = retry_after(seconds)
    message = (
        "The server is stopping: it ends what it has begun and takes no new requests. Send this one to another server, or here "
        f"in {headers['Retry-After']} s if it is started again."
    )
    return ApiError(503, "draining", message, headers=headers)


def shed_background(level: str, why: str, retry_after_s: float) -> ApiError:
    """Background work is refused first, so that people notice nothing."""
    message = f"Background work is not taken now, the server is {level}: {why}. Try again"
    otherwise = ", or use another 'service_tier' if somebody waits for the answer"
    return later(429, "shed_background", message, retry_after_s, otherwise)


def internal_error(error_id: str) -> ApiError:
    """What went wrong stands in the log under `error_id`; nothing of it is shown."""
    return ApiError(500, "internal_error", f"Internal error {error_id}: the server's log has the details.")


def new_error_id() -> str:
    return "err-" + secrets.token_hex(6)


def later(status: int, code: str, message: str, seconds: float, otherwise: str = "") -> ApiError:
    """`message` ends before "in about 5 s", which `otherwise` comes after."""
    headers = retry_after(seconds)
    return ApiError(status, code, f"{message} in about {headers['Retry-After']} s{otherwise}.", headers=headers)


def retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
