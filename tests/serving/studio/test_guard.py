"""What stands before the studio's pages: password, host names, sizes, and paths of this machine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from engine.serving.studio.guard import MOST_JSON, App, Guard

FOLDER = "/tmp/multitalk-ui-of-somebody"
LOCAL = frozenset({"127.0.0.1", "localhost"})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer the path, and the body as the application sees it."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            body = b"gone"
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": f"{scope['path']} {FOLDER}/a.png ".encode() + body})


def ask(
    guard: App, path: str = "/", *, method: str = "GET", body: bytes = b"", length: int | None = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    given = {"host": "127.0.0.1:7860"} | headers | ({} if length is None else {"content-length": str(length)})
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }

    async def answered() -> None:
        await guard(scope, receive, send)

    asyncio.run(answered())
    text = b"".join(message.get("body", b"") for message in sent).decode()
    got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], text, got


def guard(key: str | None = None, hosts: frozenset[str] | None = LOCAL) -> Guard:
    return Guard(echo, key=key, hosts=hosts, folder=FOLDER, upload_bytes=1000)


def test_no_answer_has_the_path_of_uploads_and_the_shown_one_leads_back_to_it() -> None:
    one = guard()
    status, text, headers = ask(one, "/x")
    assert status == 200
    assert FOLDER not in text
    shown = text.split()[1].removesuffix("/a.png")
    assert len(shown) == len(FOLDER)
    _, text, _ = ask(one, f"/file={shown}/a.png", method="POST", body=f"{shown}/b.png".encode())
    # The echo of what the application saw is hidden again: it knew the real path, else the name would be another.
    assert text.split() == [f"/file={shown}/a.png", f"{shown}/a.png", f"{shown}/b.png"]
    seen: list[str] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"] + (await receive())["body"].decode())
        await echo(scope, receive, send)

    one._app = look
    ask(one, f"/file={shown}/a.png", method="POST", body=shown.encode())
    assert seen == [f"/file={FOLDER}/a.png{FOLDER}"]
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""])
def test_a_foreign_host_name_is_refused(host: str) -> None:
    assert ask(guard(), host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1", "LOCALHOST.", "127.0.0.1:1"])
def test_names_of_this_machine_are_taken(host: str) -> None:
    assert ask(guard(), host=host)[0] == 200


def test_pages_of_other_sites_may_not_call() -> None:
    assert ask(guard(), origin="https://evil.example")[0] == 403
    assert ask(guard(), origin="http://127.0.0.1:7860")[0] == 200
    assert ask(guard(), origin="null")[0] == 403


def test_bodies_are_bounded_by_what_they_are() -> None:
    assert ask(guard(), "/gradio_api/upload", method="POST", length=20_000)[0] == 413
    assert ask(guard(), "/gradio_api/upload", method="POST", length=900)[0] == 200
    assert ask(guard(), "/queue/join", method="POST", length=MOST_JSON + 20_000)[0] == 413
    # Without a length the body is counted.
    assert ask(guard(), "/gradio_api/upload", method="POST", body=b"x" * 20_000)[1].endswith("gone")


def test_without_the_password_nothing_is_answered_but_the_question_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.serving.studio.guard._PAUSE", 0.0)
    one = guard("open sesame", None)
    status, text, _ = ask(one, "/studio/jobs")
    assert (status, FOLDER in text) == (401, False)
    status, text, _ = ask(one, "/", accept="text/html")
    assert status == 401
    assert "Password" in text
    assert ask(one, "/login", method="POST", body=b"password=wrong")[0] == 401
    assert ask(one, "/login", method="POST", body=b"x" * 50_000)[0] == 401
    status, text, headers = ask(one, "/login", method="POST", body=b"password=open+sesame")
    assert status == 303
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "sesame" not in cookie
    assert ask(one, cookie=cookie.partition(";")[0])[0] == 200
    assert ask(one, cookie="multitalk-studio=\xff")[0] == 401
    # Each start has its own cookie.
    assert ask(guard("open sesame", None), cookie=cookie.partition(";")[0])[0] == 401
