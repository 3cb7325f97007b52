"""What stands before the studio's pages: the key, host names, sizes, and paths of this machine in answers."""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from html import escape
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Body of a request that is not an upload.
MOST_JSON = 4_000_000
_COOKIE = "multitalk-studio"
#: Types of answers that may have paths in them.
_TEXTS = ("application/json", "text/", "application/javascript")
#: Seconds before a wrong key is answered.
_PAUSE = 1.0


class Guard:
    """An ASGI application that checks each request before `app` sees it, and hides a folder's path in its answers."""

    def __init__(
        self, app: App, *, key: str | None, hosts: Collection[str] | None, folder: str, upload_bytes: int
    ) -> None:
        """Callers need `key`, if there is one. `hosts` are the names that they may use; None: any.

        `folder` is the path of uploaded files, which the pages of Gradio name: callers see another text of the same
        length in its place. `upload_bytes` is the largest upload.
        """
        self._app, self._key, self._hosts, self._upload_bytes = app, key, hosts, upload_bytes
        self._folder = folder.encode()
        # As long as the path, so that the lengths of answers stay true.
        self._shown = (b"/" + secrets.token_hex(len(folder)).encode())[: len(folder)]
        self._cookie = secrets.token_urlsafe()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        name = re.sub(r":\d*\Z", "", host).strip("[]").lower().removesuffix(".")
        if self._hosts is not None and name not in self._hosts:
            await _answer(send, 403, "Use 127.0.0.1 or localhost: this host name is not one of the studio's.")
            return
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            await _answer(send, 403, "Pages of other sites may not call the studio.")
            return
        if self._key is not None and not self._knows(headers):
            await self._ask(scope, headers, receive, send)
            return
        upload = scope["path"].rstrip("/").endswith("/upload")
        most = self._upload_bytes if upload else MOST_JSON
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most + 10_000:
            await _answer(send, 413, f"The file is larger than {most / 1e6:g} MB.")
            return
        await self._app(self._unhidden(scope), self._read(receive, most + 10_000, texts=not upload), self._hidden(send))

    def _knows(self, headers: MutableMapping[str, str]) -> bool:
        cookies = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
        return any(
            name == _COOKIE and hmac.compare_digest(value.encode(), self._cookie.encode()) for name, _, value in cookies
        )

    async def _ask(self, scope: Scope, headers: MutableMapping[str, str], receive: Receive, send: Send) -> None:
        """Ask for the key, and give a cookie to who knows it."""
        if scope["path"] != "/login" or scope["method"] != "POST":
            if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                await _answer(send, 401, _LOGIN.format(error=""), kind="text/html")
            else:
                await _answer(send, 401, "Open the studio's page and give its password.")
            return
        body = b""
        while len(body) <= 10_000:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        given = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True).get("password", [""])[0]
        if not hmac.compare_digest(given.encode(), (self._key or "").encode()):
            await asyncio.sleep(_PAUSE)
            wrong = escape("This is not the password.")
            await _answer(send, 401, _LOGIN.format(error=wrong), kind="text/html")
            return
        cookie = f"{_COOKIE}={self._cookie}; HttpOnly; SameSite=Strict; Path=/".encode()
        await send(
            {"type": "http.response.start", "status": 303, "headers": [(b"location", b"/"), (b"set-cookie", cookie)]}
        )
        await send({"type": "http.response.body", "body": b""})

    def _unhidden(self, scope: Scope) -> Scope:
        raw = scope.get("raw_path") or scope["path"].encode()
        return {
            **scope,
            "path": scope["path"].replace(self._shown.decode(), self._folder.decode()),
            "raw_path": raw.replace(self._shown, self._folder),
            "query_string": scope.get("query_string", b"").replace(self._shown, self._folder),
        }

    def _read(self, receive: Receive, most: int, *, texts: bool) -> Receive:
        read = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            if message["type"] != "http.request":
                return message
            read += len(message.get("body", b""))
            if read > most:
                # A body without a length; the application sees that the caller has gone.
                return {"type": "http.disconnect"}
            if not texts:
                return message
            return {**message, "body": message.get("body", b"").replace(self._shown, self._folder)}

        return counted

    def _hidden(self, send: Send) -> Send:
        text = False

        async def written(message: MutableMapping[str, Any]) -> None:
            nonlocal text
            if message["type"] == "http.response.start":
                kinds = [
                    value.decode("latin-1") for name, value in message["headers"] if name.lower() == b"content-type"
                ]
                text = any(kind.startswith(_TEXTS) for kind in kinds)
                headers = [(name, value.replace(self._folder, self._shown)) for name, value in message["headers"]]
                message = {**message, "headers": [*headers, *_HEADERS]}
            elif text and message.get("body"):
                message = {**message, "body": message["body"].replace(self._folder, self._shown)}
            await send(message)

        return written


_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
]

_LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>MultiTalk studio</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark }} body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 24rem;
margin: 3rem auto; padding: 1rem }} input, button {{ font: inherit; padding: .5rem; min-height: 2.75rem; width: 100%;
box-sizing: border-box; margin: .25rem 0 1rem }}</style>
<main><h1>MultiTalk studio</h1><form method="post" action="/login"><label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<p role="alert">{error}</p><button>Open</button></form></main></html>"""


async def _answer(send: Send, status: int, text: str, kind: str = "text/plain") -> None:
    body = text.encode()
    headers = [
        (b"content-type", f"{kind}; charset=utf-8".encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *_HEADERS,
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
