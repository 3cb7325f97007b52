"""A RunPod serverless endpoint on this machine, for development and tests."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import Entrypoint, Service
from engine.config import SECRET, ComponentConfig, within
from engine.errors import MissingExtra
from engine.plugin.register import Register
from engine.serving.endpoint.limits import EndpointLimits

if TYPE_CHECKING:
    from engine.serving.endpoint.server import LocalEndpoint


def _seconds(default: float, about: str) -> float:
    about = f"{about} ({default:g} s)"
    return field(default=default, metadata={"help": about, "word": "SECONDS"} | within(0, 10**9))


def _number(default: int, about: str, least: int = 0) -> int:
    return field(default=default, metadata={"help": f"{about} ({default})", "word": "N"} | within(least, 10**12))


_LIMITS = EndpointLimits()


@dataclass
class EndpointConfig(ComponentConfig):
    """Serves jobs like a RunPod endpoint on this machine, with its own worker processes."""

    name: str = "endpoint"
    host: str = field(default="127.0.0.1", metadata={"help": "interface to listen on (127.0.0.1)", "word": "ADDRESS"})
    port: int = field(default=8000, metadata={"help": "port; 0: any free port (8000)", "word": "N"} | within(0, 65_535))
    endpoint_id: str = field(default="local", metadata={"help": "id in the URLs (local)", "word": "ID"})
    workers: int = _number(1, "number of worker processes")
    worker: str | None = field(
        default=None,
        metadata={"help": "command of a worker (multitalk runpod, with the overrides given here)", "word": "COMMAND"},
    )
    api_key: str | None = field(default=None, metadata={"help": "API key for callers (none)", "word": "KEY"} | SECRET)
    allowed_host: str | None = field(
        default=None,
        metadata={"help": "host names that callers may use besides localhost, comma-separated (none)", "word": "NAMES"},
    )
    run_bytes: int = _number(_LIMITS.run_bytes, "maximum bytes of a request to /run and of its result")
    sync_bytes: int = _number(_LIMITS.sync_bytes, "maximum bytes of a request to /runsync and of its result")
    run_retention: float = _seconds(_LIMITS.run_retention, "how long a result of /run is kept")
    sync_retention: float = _seconds(_LIMITS.sync_retention, "how long a result of /runsync is kept")
    sync_wait: float = _seconds(_LIMITS.sync_wait, "how long /runsync waits by default")
    execution_timeout: float = _seconds(_LIMITS.execution_timeout, "maximum run time of a job without its own policy")
    ttl: float = _seconds(_LIMITS.ttl, "lifetime of a job without its own policy")
    queue_jobs: int = _number(_LIMITS.queue_jobs, "maximum waiting jobs; 0: no limit")
    queue_bytes: int = _number(_LIMITS.queue_bytes, "maximum bytes of jobs in memory; 0: no limit")
    rate: int = _number(_LIMITS.rate, "calls of the same kind in 10 s before 429; 0: no limit")
    attempts: int = _number(_LIMITS.attempts, "workers that may die on a job before it fails", 1)
    webhook_retries: int = _number(_LIMITS.webhook_retries, "retries of a webhook")
    webhook_delay: float = _seconds(_LIMITS.webhook_delay, "pause before a webhook is retried")
    start_timeout: float = _seconds(_LIMITS.start_timeout, "maximum start time of a worker")
    grace: float = _seconds(_LIMITS.grace, "how long a worker may take to stop before it is killed")


class Endpoint:
    """Entrypoint of a local endpoint. Prints its URL on stdout, everything else on stderr."""

    def __init__(self, config: EndpointConfig) -> None:
        self.config = config

    def run(self, service: Service) -> int:
        """Serve until interrupted (Ctrl-C, SIGTERM). Raises ConfigError, and MissingExtra without aiohttp."""
        try:
            import aiohttp  # noqa: F401
        except ImportError as error:
            raise MissingExtra("entrypoint=endpoint", "aiohttp", "endpoint") from error
        from engine.serving.worker.logs import LogContext, formatter

        handler = logging.StreamHandler()
        handler.setFormatter(formatter(LogContext()))
        log = logging.getLogger("engine.serving.endpoint")
        log.addHandler(handler)
        # With --verbose the root logger has a handler too.
        log.propagate = False
        try:
            asyncio.run(_serve(self._endpoint(service.overrides)))
        finally:
            log.removeHandler(handler)
            log.propagate = True
        return 0

    def _endpoint(self, overrides: Sequence[str]) -> LocalEndpoint:
        from engine.serving.endpoint.server import LocalEndpoint

        config = self.config
        names = {field.name for field in fields(EndpointLimits)} & {field.name for field in fields(config)}
        return LocalEndpoint(
            shlex.split(config.worker) if config.worker is not None else worker_command(overrides),
            endpoint_id=config.endpoint_id,
            host=config.host,
            port=config.port,
            workers=config.workers,
            api_key=config.api_key,
            allowed_hosts=[name.strip() for name in (config.allowed_host or "").split(",") if name.strip()],
            limits=EndpointLimits(**{name: getattr(config, name) for name in names}),
        )


def worker_command(overrides: Sequence[str]) -> list[str]:
    """Return the command of a worker with `overrides`, without those about the entrypoint."""
    own = ("entrypoint=", "entrypoint.")
    arguments = [override for override in overrides if not override.lstrip("+~").startswith(own)]
    return [sys.executable, "-m", "engine", "runpod", *arguments]


async def _serve(endpoint: LocalEndpoint) -> None:
    stop = asyncio.Event()

    def interrupt() -> None:
        if stop.is_set():
            # A second signal: no grace period.
            for worker in list(endpoint.pool.workers):
                endpoint.pool.kill(worker)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)
    async with endpoint:
        print(endpoint.url, flush=True)
        base, name = endpoint.base_url, endpoint.endpoint_id
        print(f"multitalk: for clients: RUNPOD_ENDPOINT_BASE_URL={base}, endpoint id {name}", file=sys.stderr)
        await stop.wait()


@hookimpl
def register_entrypoints(register: Register[Entrypoint]) -> None:
    register(Endpoint, EndpointConfig)
