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

from engine.errors import ConfigError
from engine.serving.studio.guard import Guard
from engine.serving.studio.studio import Studio


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
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server._serve([sock]))
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

    from engine.serving.studio.page import build
    from engine.serving.studio.routes import add_routes

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    add_routes(app, studio)
    blocks, look = build(studio, read_recipe)
    return gradio.mount_gradio_app(
        app, blocks, path="/", show_error=False, max_file_size=serving.upload_bytes, footer_links=[],
        enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False, run_history=False, **look,
    )  # fmt: skip
