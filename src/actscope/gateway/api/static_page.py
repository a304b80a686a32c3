"""Static files of the scope's web page, or a notice on how to build it."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from actscope.gateway.settings import STATIC

_ABSENT = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>actscope</title>"
    "<h1>The page is not built</h1><p>The gateway runs, but its page is missing: <code>make page</code> builds it."
    "<p>The API works without it: see <code>/openapi.json</code>."
)


class Page(StaticFiles):
    """The built files. Names under `assets/` contain a hash of the content, so browsers may cache them forever."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Serve a file with its `Cache-Control`: forever for hashed names, `no-cache` for all others."""
        response = await super().get_response(path, scope)
        lasting = path.startswith("assets/") and response.status_code in (200, 304)
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"
        return response


async def _absent(scope: Scope, receive: object, send: object) -> None:
    if scope["path"] != "/":
        raise HTTPException(404, f"no such path: {scope['path']}")
    await HTMLResponse(_ABSENT)(scope, receive, send)  # type: ignore[arg-type]


def install_page(app: FastAPI, directory: Path = STATIC) -> None:
    """Serve the page, compressed for clients that accept it, at every path that no route of the API matches."""
    built = (directory / "index.html").is_file()
    app.mount("/", _page_of(directory) if built else _absent, name="page")


def _page_of(directory: Path) -> ASGIApp:
    return GZipMiddleware(Page(directory=directory, html=True), minimum_size=1024)
