"""The pages that the server has: their files, and the policy that says what they may load.

The dashboard's charts are drawn by the plotly.min.js of the installed package plotly; without it that file is not there, and
the page says so. plotly.js would add style elements to a page, which the policy forbids; it leaves them out where it finds
elements of their ids, which dashboard.html has. So one policy holds for all pages."""

import importlib.util
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from poise import gateway
from poise.gateway.records.changes import GOES_ON, STOPS
from poise.gateway.request.refusals import not_found

PAGE_DIR = Path(gateway.__file__).parent / "page"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PLOTLY_FILE = "plotly.min.js"
CHANGES_MODULE = "".join(
    f"export const {name} = {json.dumps(value)};\n"
    for name, value in {
        "STOPS": {kind: stop.comment.decode() for kind, stop in STOPS.items()},
        "STOP_LABELS": {stop.comment.decode(): stop.label for stop in STOPS.values()},
        "GOES_ON": GOES_ON,
    }.items()
).encode()
"""A module of the page, so that a kind of change has its words once: for each that stops a choice the state it leads to, for
each such state what it is called, and the kinds by which a choice goes on."""


class PageFiles(StaticFiles):
    """The pages' files, with a policy that lets them load nothing from elsewhere."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        return _guarded(await super().get_response(path, scope))


def page_routes(page_dir: Path) -> list[BaseRoute]:
    routes: list[BaseRoute] = [
        Route("/", _page(page_dir / "index.html")),
        Route("/dashboard", _page(page_dir / "dashboard.html")),
    ]
    plotly_dir = find_plotly()
    if plotly_dir is not None:
        files = PageFiles(directory=plotly_dir)

        async def plotly(request: Request) -> Response:
            return await files.get_response(_PLOTLY_FILE, request.scope)

        routes.append(Route(f"/page/{_PLOTLY_FILE}", plotly))
    routes.append(Route("/page/changes.js", _changes))
    if page_dir.is_dir():
        routes.append(Mount("/page", PageFiles(directory=page_dir)))
    return routes


def find_plotly() -> Path | None:
    """The folder of the installed package that has plotly.min.js. The package is not imported: that would take a second."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "package_data"
        if (path / _PLOTLY_FILE).is_file():
            return path
    return None


def _page(file: Path) -> Callable[[Request], Awaitable[Response]]:
    is_there = file.is_file()

    async def page(request: Request) -> Response:
        if not is_there:
            raise not_found(request.url.path)
        # What a page loads it names beside itself: it must be seen as in the folder of its address.
        name, is_folder = request.scope["raw_path"].decode("latin-1").rpartition("/")[2], file.stem == "index"
        if is_folder and name:
            return RedirectResponse(f"./{name}/")
        if not is_folder and not name:
            return RedirectResponse(f"../{file.stem}")
        return _guarded(FileResponse(file))

    return page


async def _changes(request: Request) -> Response:
    return _guarded(Response(CHANGES_MODULE, media_type="text/javascript"))


def _guarded(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache"  # an upgrade must not mix old and new modules
    return response
