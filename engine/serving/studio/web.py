"""The studio as a web server: Gradio's page, and the addresses of jobs and videos that the page uses."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.client import ClientError
from engine.errors import ConfigError
from engine.serving.studio.form import FieldError
from engine.serving.studio.guard import Guard
from engine.serving.studio.studio import Studio

_TYPES = {"m3u8": "application/vnd.apple.mpegurl", "mp4": "video/mp4", "m4s": "video/iso.segment"}


@dataclass(frozen=True)
class Serving:
    """Where the studio listens, and who may come in."""

    host: str = "127.0.0.1"
    port: int = 7860
    #: The password; None: no password.
    key: str | None = None
    #: Host names that callers may use; None: any.
    hosts: frozenset[str] | None = frozenset({"127.0.0.1", "localhost", "::1"})
    upload_bytes: int = 100_000_000


@asynccontextmanager
async def served(
    studio: Studio, serving: Serving, read_recipe: Callable[[Path], Mapping[str, Any]]
) -> AsyncIterator[str]:
    """Serve the studio inside; yield its address. Raises ConfigError if the port cannot be used."""
    with tempfile.TemporaryDirectory(prefix=f"multitalk-ui-{secrets.token_hex(8)}-") as folder:
        # Gradio reads them when it is imported: its copies of uploads go where they are removed at the end.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        import uvicorn

        sock = _listen(serving)
        app = Guard(
            _application(studio, serving, read_recipe),
            key=serving.key,
            hosts=serving.hosts,
            folder=folder,
            upload_bytes=serving.upload_bytes,
        )
        config = uvicorn.Config(
            app,  # type: ignore[arg-type] # its scopes are plain mappings
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server._serve([sock]))  # noqa: SLF001 - `serve` would take over our signals
        try:
            while not server.started and not task.done():
                await asyncio.sleep(0.02)
            name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serving.host, serving.host)  # noqa: S104 - compared
            port = sock.getsockname()[1]
            yield f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
        finally:
            server.should_exit = True
            await task
            sock.close()


def _listen(serving: Serving) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
        return socket.create_server((serving.host, serving.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {serving.host}, port {serving.port}: {error.strerror or error}",
            field="entrypoint.port",
            hint="choose another port; 0 takes any free one",
        ) from error


def _application(studio: Studio, serving: Serving, read_recipe: Callable[[Path], Mapping[str, Any]]) -> Any:
    import gradio
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response

    from engine.serving.studio.page import build

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    def missing() -> Response:
        return JSONResponse({"error": "there is no such video"}, 404)

    @app.get("/studio/jobs")
    def jobs() -> Response:
        shown = ("id", "state", "word", "final", "title", "created", "thumb", "of", "window")
        entries = [studio.view(entry.id) for entry in studio.history.newest()]
        return JSONResponse([{key: entry[key] for key in shown} for entry in entries if entry is not None])

    @app.get("/studio/jobs/{name}")
    def job(name: str) -> Response:
        entry = studio.view(name)
        return missing() if entry is None else JSONResponse(entry, headers={"Cache-Control": "no-store"})

    @app.post("/studio/jobs/{name}/{action}")
    def act(name: str, action: str, window: int = 0, seed: int | None = None) -> Response:
        try:
            match action:
                case "cancel":
                    studio.cancel(name)
                case "remove":
                    studio.remove(name)
                case "retake":
                    return JSONResponse({"id": studio.retake(name, window, seed)})
                case _:
                    return missing()
        except FieldError as error:
            return JSONResponse({"error": error.text}, 400)
        except ClientError as error:
            return JSONResponse({"error": error.what}, 502)
        return JSONResponse({})

    def stored(name: str, file: str) -> Path | None:
        try:
            path = studio.history.path(name, file)
        except KeyError:
            return None
        return path if path.is_file() else None

    @app.get("/studio/video/{name}")
    def video(name: str, save: int = 0) -> Response:
        if (path := stored(name, "video.mp4")) is None:
            return missing()
        return FileResponse(path, media_type="video/mp4", filename=f"talk-{name[:6]}.mp4" if save else None)

    @app.get("/studio/thumb/{name}")
    def thumb(name: str) -> Response:
        path = stored(name, "thumb.jpg")
        return missing() if path is None else FileResponse(path, media_type="image/jpeg")

    @app.get("/studio/live/{name}/{file}")
    def live(name: str, file: str) -> Response:
        found = studio.live_file(name, file)
        if found is None:
            return missing()
        kind = _TYPES[file.rpartition(".")[2]]
        headers = {"Cache-Control": "no-cache" if file.endswith("m3u8") else "private, max-age=3600"}
        if isinstance(found, Path):
            return FileResponse(found, media_type=kind, headers=headers)
        return Response(found, media_type=kind, headers=headers)

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal error of the studio; see its log"}, 500)

    blocks, look = build(studio, read_recipe)
    return gradio.mount_gradio_app(
        app, blocks, path="/", show_error=False, max_file_size=serving.upload_bytes, footer_links=[],
        enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False, run_history=False, **look,
    )  # fmt: skip
