"""Which names the server answers to, and which web pages may use it.

A browser on this machine runs other people's pages. Two things keep them away from a local server. A page whose own name was made
to lead here (DNS rebinding) gives that name as Host: only the names that are served are answered. A page of another origin gives
its Origin with everything that is not a plain read: such requests are refused, unless the origin is listed or local, and plain
reads are not shown to it by its browser (no CORS headers). Of /admin, plain reads are refused as well, since some cost much, and
no origin is local enough. Programs send neither header wrongly and notice nothing.

Local are the pages of this machine's own servers, of browser extensions and of installed apps: no page of the network can have
such an origin."""

import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from poise.config import ServerSettings
from poise.config.kinds import address_of, is_loopback
from poise.gateway.http.replies import error_reply
from poise.gateway.request.refusals import ApiError, shown

_READS = ("GET", "HEAD")
_CONTAINER_HOSTS = ("host.docker.internal", "gateway.docker.internal", "host.containers.internal", "host.lima.internal")
"""What programs in containers call the machine that they run on."""
_APP_SCHEMES = ("app", "capacitor", "ionic", "tauri", "vscode-file", "vscode-webview", "wails")
_PREFLIGHT_AGE_S = 600


class GuardMiddleware:
    """Refuses requests for a Host that is not served, and those of web pages of other origins."""

    def __init__(self, app: ASGIApp, *, server: ServerSettings) -> None:
        self._app = app
        own = socket.gethostname()
        self._hosts = frozenset(map(_normal, [server.host, *server.hosts, own, f"{own}.local"])) - {""}
        self._origins = frozenset(server.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        guarded = scope["path"].startswith("/admin")
        shares = origin in self._origins or (not guarded and _is_local_origin(origin or ""))
        error = self._wrong_host(headers, scope.get("server"))
        if error is None and not shares:
            error = _wrong_origin(headers, origin, reads=scope["method"] in _READS and not guarded, guarded=guarded)
        if error is not None:
            await error_reply(error)(scope, receive, send)
        elif shares:
            await self._for_page(str(origin), headers, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _wrong_host(self, headers: Headers, server: Sequence[object] | None) -> ApiError | None:
        """`server` is the address that the connection came in on."""
        given = headers.get("host")
        if given is None:
            return None  # HTTP/1.0: no browser
        host = _host_of(given)
        if host and (_is_local(host) or host in self._hosts or (server and host == _normal(str(server[0])))):
            return None
        message = f"This server is not called {shown(given)}. If it should be, set server.hosts."
        return ApiError(421, "host_not_served", message)

    async def _for_page(self, origin: str, headers: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        """CORS for an origin that may use the server: whatever headers it wants to send, and all that are answered."""
        shared = {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            preflight = {
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": headers.get("access-control-request-headers", ""),
                "Access-Control-Max-Age": str(_PREFLIGHT_AGE_S),
            }
            if headers.get("access-control-request-private-network") == "true":
                preflight["Access-Control-Allow-Private-Network"] = "true"
            await Response(status_code=204, headers=shared | preflight)(scope, receive, send)
            return

        async def send_shared(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = MutableHeaders(scope=message)
                fields.update(shared | {"Access-Control-Expose-Headers": ", ".join([*fields.keys(), "x-request-id"])})
            await send(message)

        await self._app(scope, receive, send_shared)


def _wrong_origin(headers: Headers, origin: str | None, *, reads: bool, guarded: bool) -> ApiError | None:
    """A page of another origin, by its Origin or, where browsers name none, by where they say that the request comes from."""
    if origin is None:
        site = headers.get("sec-fetch-site")
        foreign = site == "cross-site" or (guarded and site == "same-site")
        origin = "of another site"
    else:
        foreign = not _is_own(origin, headers.get("host", ""))
        origin = shown(origin)
    if not foreign or reads:
        return None
    message = f"Web pages {origin} may not use this server. If they should, set server.origins."
    return ApiError(403, "origin_not_allowed", message)


def _is_local(host: str) -> bool:
    """Whether a name leads to this machine wherever it is used."""
    return is_loopback(host) or host.endswith(".localhost") or host in _CONTAINER_HOSTS


def _is_local_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        host = _normal(parts.hostname or "")
    except ValueError:
        return False
    if parts.scheme in ("http", "https"):
        return _is_local(host)
    return parts.scheme in _APP_SCHEMES or parts.scheme.endswith("-extension")


def _is_own(origin: str, host: str) -> bool:
    """Whether the page came from this server. The scheme may differ behind a proxy that speaks TLS."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""


def _host_of(header: str) -> str:
    """The name in a Host header, without its port; empty when it is none."""
    try:
        return _normal(urlsplit("//" + header).hostname or "")
    except ValueError:
        return ""


def _normal(host: str) -> str:
    """Names in small letters, addresses in their usual form."""
    host = host.lower().rstrip(".").removeprefix("[").removesuffix("]").partition("%")[0]
    return str(address_of(host) or host)
