"""Exceptions of handlers and of the router as refusals, in the format of the dialect that is spoken at the path."""

import logging
from collections.abc import Callable, Mapping, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from poise.gateway.http.connections.peers import peer_of
from poise.gateway.http.credentials import request_id_of
from poise.gateway.http.replies import error_reply
from poise.gateway.request.refusals import ApiError, method_not_allowed, not_found
from poise.gateway.tenancy.strangers import Strangers

log = logging.getLogger(__name__)


class Failures:
    """Answers exceptions. `refusals`: what writes the body of an error, by path; elsewhere it is in OpenAI's format.
    `paths`: those that clients may mean."""

    def __init__(
        self, strangers: Strangers, refusals: Mapping[str, Callable[[ApiError], bytes]], paths: Sequence[str] = ()
    ) -> None:
        self._strangers = strangers
        self._paths = paths
        self._refusals = refusals

    async def api_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        if error.status == 401:
            error = self._strangers.refused(peer_of(request.scope).address, error)
        # Neither message nor parameter: they quote the request.
        log.info("[%s] answered with %d %s", request_id_of(request.scope), error.status, error.code)
        return self._reply(request, error)

    async def http_error(self, request: Request, error: Exception) -> Response:
        """Errors of the router and of the static files."""
        assert isinstance(error, HTTPException)
        path = request.url.path
        headers = dict(error.headers or {})
        if error.status_code == 404:
            return self._reply(request, not_found(path, self._paths))
        if error.status_code == 405:
            return self._reply(request, method_not_allowed(request.method, path, headers))
        return self._reply(request, ApiError(error.status_code, "http_error", str(error.detail), headers=headers))

    def _reply(self, request: Request, error: ApiError) -> Response:
        return error_reply(error, self._refusals.get(request.url.path, ApiError.body))
