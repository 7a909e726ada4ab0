"""Exceptions of handlers and of the router as refusals, in the format of all others."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.errors import ApiError, method_not_allowed, not_found
from poise.gateway.http.credentials import request_id_of
from poise.gateway.http.peers import peer_of
from poise.gateway.http.replies import error_reply
from poise.gateway.tenancy.strangers import Strangers

log = logging.getLogger(__name__)


async def api_error(strangers: Strangers, request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    if error.status == 401:
        error = strangers.refused(peer_of(request.scope).address, error)
    # Neither message nor parameter: they quote the request.
    log.info("[%s] answered with %d %s", request_id_of(request.scope), error.status, error.code)
    return error_reply(error)


async def http_error(request: Request, error: Exception) -> Response:
    """Errors of the router and of the static files, in the format of all others."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        return error_reply(not_found(path))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        return error_reply(method_not_allowed(request.method, path, headers))
    return error_reply(ApiError(error.status_code, "http_error", str(error.detail), headers=headers))
