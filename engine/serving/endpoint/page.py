"""The web page at /: a form for a job, its progress and its video, made from files here and in the folder above."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from aiohttp import web

from engine.text.pages import read_template

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
#: Nothing is loaded from other hosts, except a finished video, which may come from a bucket.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob: https: http:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def routes(endpoint_id: str) -> list[web.RouteDef]:
    """Return the routes of the page, which passes the endpoint's id to its script."""
    return [
        web.get("/", _file("page.html", endpoint_id)),
        web.get("/page.css", _file("page.css", endpoint_id)),
        web.get("/page.js", _file("page.js", endpoint_id)),
        web.get("/player.js", _file("player.js", endpoint_id)),
        web.get("/favicon.ico", _none),
    ]


def _file(name: str, endpoint_id: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    package = "engine.serving" if name == "player.js" else "engine.serving.endpoint"
    if name == "page.html":
        text = read_template(package, name).render(endpoint=endpoint_id)
    else:
        text = files(package).joinpath(name).read_text("utf-8")
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=_TYPES[name.rpartition(".")[2]], charset="utf-8", headers=headers)

    return handler


async def _none(request: web.Request) -> web.Response:
    return web.Response(status=204)
