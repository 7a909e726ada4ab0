"""Around every request: its id, the bound on open requests, and errors, in the format of the dialect that is spoken at the path.

Plain ASGI rather than Starlette's BaseHTTPMiddleware, which puts a queue of its own between the client and the answer and
hides the client's disconnect."""

import logging
import re
import secrets
from collections.abc import Callable, Mapping, Sequence

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poise.config import ServerSettings
from poise.gateway.http.connections.exchange import DIRECT_SEND, EXCHANGE
from poise.gateway.http.connections.peers import REQUEST_ID, credentials_of, peer_of, request_id_of
from poise.gateway.http.connections.places import STRANGERS, Shares, is_always_answered, share_of
from poise.gateway.http.connections.refusals import account_requests_full, requests_full
from poise.gateway.http.replies import error_reply
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.refusals import ApiError, ClientGone, internal_error, method_not_allowed, not_found
from poise.gateway.tenancy.caller import Credentials
from poise.gateway.tenancy.strangers import Strangers
from poise.metrics.gateway import GatewayMetrics

log = logging.getLogger(__name__)


_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FILES = ("/", "/dashboard", "/openapi.json")
"""They, and what is under /page/, are on nobody's account: whoever takes that up leaves the API alone."""


class RequestMiddleware:
    def __init__(
        self, app: ASGIApp, *, server: ServerSettings, account_of: Callable[[Credentials], str], metrics: GatewayMetrics
    ) -> None:
        """`account_of` tells under whose name a request is counted; STRANGERS for a caller who is not known."""
        self._app = app
        self._open = Shares(server.max_connections)
        self._account_of = account_of
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        others = [(name, value) for name, value in scope["headers"] if name != REQUEST_ID]
        scope = {**scope, "headers": [*others, (REQUEST_ID, request_id.encode())], DIRECT_SEND: send}
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        error: ApiError | None = None
        try:
            error = await self._bounded(scope, receive, send_with_id)
        except ClientGone:
            log.info("[%s] client left before its answer", request_id)
        except Exception as bug:
            error_id = log_bug(log, request_id, bug)
            error = None if started else internal_error(error_id)
        finally:
            scope.pop(DIRECT_SEND)  # whoever keeps the scope is not to keep the connection with it
        if error is not None:
            await error_reply(error)(scope, receive, send_with_id)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> ApiError | None:
        """Let a request pass if there is room for it, else say so."""
        path = scope["path"]
        is_nobodys = is_always_answered(path) or path in _FILES or path.startswith("/page/")
        account = STRANGERS if is_nobodys else self._account_of(credentials_of(HTTPConnection(scope)))
        if (exchange := scope.get(EXCHANGE)) is not None:
            try:
                exchange.claim(account)
            except ApiError as error:
                return error
        if is_always_answered(path):
            await self._app(scope, receive, send)
            return None
        if not self._open.take(account, 1, share=share_of(account), least=1):
            return self._full(account)
        self._metrics.n_open = self._open.used
        try:
            await self._app(scope, receive, send)
        finally:
            self._open.give(account, 1)
            self._metrics.n_open = self._open.used
        return None

    def _full(self, account: str) -> ApiError:
        if self._open.used >= self._open.total or account == STRANGERS:
            return requests_full(self._open.total)
        return account_requests_full(self._open.held(account))


def _request_id(scope: Scope) -> str:
    """The client's own id if it is harmless in a log, else a new one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID:
            given = value.decode("latin-1")
            if _CLIENT_ID.fullmatch(given):
                return str(given)
    return "req-" + secrets.token_hex(8)


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
