"""At which path a request is answered, whatever its client has put together: decided once, before anything looks at it.

Base URLs are written with `/v1`, without it, or twice, with slashes at the end; behind a proxy they may begin with
`server.root_path`. A slash that was sent as `%2F` separates nothing: it stays as it is (and so does `%25`) until the route has
cut the path into its parameters, which `parameters_of` reads."""

import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

API = "/v1"
_SLASHES, _TWICE, _KEPT = re.compile(r"/{2,}"), re.compile(r"^(?:/v1)+(?=/v1(?:/|$))"), re.compile(r"%(?=2[fF5])")


class AddressMiddleware:
    """Puts the path of a route in the place of the one that was sent, if it means one."""

    def __init__(self, app: ASGIApp, *, root_path: str, routes: Sequence[BaseRoute]) -> None:
        self._app = app
        self._root_path = root_path
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = self._meant(normal(scope["raw_path"].decode("latin-1"), self._root_path))
            if path == API and scope["method"] in ("GET", "HEAD"):
                path = API + "/models"  # who looks whether there is an API
            scope = {**scope, "path": path}
        await self._app(scope, receive, send)

    def _meant(self, path: str) -> str:
        if self._is_known(path):
            return path
        other = path.removeprefix(API) if path.startswith(API + "/") else API + path
        return other if self._is_known(other) else path

    def _is_known(self, path: str) -> bool:
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        return any(route.matches(scope)[0] is not Match.NONE for route in self._routes)


def normal(raw_path: str, root_path: str = "") -> str:
    """A path as it was sent, decoded, with one slash between two parts and none at the end."""
    path = _SLASHES.sub("/", raw_path)
    if root_path and f"{path}/".startswith(f"{root_path}/"):
        path = path.removeprefix(root_path)
    return unquote(_KEPT.sub("%25", _TWICE.sub("", path.rstrip("/")))) or "/"


def parameters_of(scope: Scope) -> dict[str, Any]:
    """The parameters in the path of a request."""
    return {name: unquote(value) for name, value in scope["path_params"].items()}
