"""The pages that the server has: their files, and what a browser is told they may load."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from poise.gateway.errors import not_found

PAGE_DIR = Path(__file__).parent / "page"
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class PageFiles(StaticFiles):
    """The pages' files, told to load nothing from elsewhere."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        return _guarded(await super().get_response(path, scope))


def add_pages(app: FastAPI, page_dir: Path) -> None:
    index = page_dir / "index.html"

    async def page(request: Request) -> Response:
        if not index.is_file():
            raise not_found(request.url.path)
        return _guarded(FileResponse(index))

    app.add_route("/", page, methods=["GET", "HEAD"], include_in_schema=False)
    if page_dir.is_dir():
        app.mount("/page", PageFiles(directory=page_dir))


def _guarded(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-cache"  # an upgrade must not mix old and new modules
    return response
