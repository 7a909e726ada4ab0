"""What the connection layer answers by itself, in the API's format, and how it looks on the wire."""

from http import HTTPStatus

from poise.gateway.request.refusals import ApiError, later

RETRY_S = 1.0
"""Connections come and go: a second later there may be room."""


def malformed(why: str) -> ApiError:
    """`why` completes the sentence "The request is no valid HTTP/1.1: ..."."""
    return ApiError(400, "malformed_request", f"The request is no valid HTTP/1.1: {why}. The connection is closed.")


def line_too_long(limit: int) -> ApiError:
    return ApiError(414, "uri_too_long", f"The request line is longer than {limit} bytes. Send what is so long in the body.")


def head_too_large(found: str, limit: int, setting: str) -> ApiError:
    """`found`: what there is more of than `limit`."""
    message = f"The request has more than {limit} {found} ({setting}). Send fewer or shorter headers."
    return ApiError(431, "headers_too_large", message)


def head_too_slow(timeout_s: float) -> ApiError:
    message = f"The request's headers were not complete after {timeout_s:g} s. Send them faster."
    return ApiError(408, "request_timeout", message)


def connections_full(limit: int) -> ApiError:
    why = f"All {limit} connections of this server (server.connections_total) are at work. Try again"
    return later(503, "too_many_connections", why, RETRY_S)


def address_full(address: str, n: int) -> ApiError:
    why = (
        f"{n} connections from {address} are open, which is as many as one address may have now. Close some of them, or try again"
    )
    return later(429, "address_too_many_connections", why, RETRY_S)


def account_full(n: int) -> ApiError:
    why = f"Your tenant has {n} connections open, which is as many as one may have now. Close some of them, or try again"
    return later(429, "tenant_too_many_connections", why, RETRY_S)


def bodies_full(held: int, total: int) -> ApiError:
    why = (
        f"Your requests in flight have {held} bytes of bodies, and there is no room for more: all requests together may have "
        f"{total} (server.body_bytes_total). Let some of them end first, or try again"
    )
    return later(429, "too_many_body_bytes", why, RETRY_S)


def requests_full(limit: int) -> ApiError:
    why = f"{limit} requests are open, which is the limit of this server. Try again"
    return later(503, "too_many_open_requests", why, RETRY_S)


def account_requests_full(n: int) -> ApiError:
    why = f"Your tenant has {n} requests open, which is as many as one may have now. Let some of them end first, or try again"
    return later(429, "tenant_too_many_requests", why, RETRY_S)


def rendered(error: ApiError) -> bytes:
    """The whole answer; after it the connection is closed."""
    body = error.body()
    fields = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    lines = [f"{name}: {value}" for name, value in (fields | error.answer_headers).items()]
    head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1", "replace") + body
