"""The endpoint as a whole: jobs, workers, both sides of the protocol and the page, behind one port."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType

import aiohttp
from aiohttp import web

from engine.endpoint import channel, page, verbs
from engine.endpoint.jobs import Job, Jobs
from engine.endpoint.limits import Limits
from engine.endpoint.web import HOUSE, House, Refused, fail
from engine.endpoint.webhook import deliver
from engine.endpoint.workers import Crew
from engine.errors import ConfigError

_LOG = logging.getLogger(__name__)
_TICK = 0.1
#: Names under which a server on the loopback interface may be asked for, whatever a name server says.
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class LocalEndpoint:
    """One endpoint; `async with` runs it."""

    def __init__(
        self,
        worker: Sequence[str],
        *,
        endpoint_id: str = "local",
        host: str = "127.0.0.1",
        port: int = 0,
        workers: int = 1,
        api_key: str | None = None,
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`worker` is the command of a worker, `environment` what it gets beside ours; port 0 takes any free one."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", endpoint_id):
            raise ConfigError(f"{endpoint_id!r} cannot be an endpoint's id", hint="letters, digits, dashes")
        if not 0 <= port <= 65535:
            raise ConfigError(f"there is no port {port}", field="entrypoint.port", hint="0 (any free one) to 65535")
        if workers < 0:
            raise ConfigError(f"{workers} workers", field="entrypoint.workers", hint="give 0 or more")
        self.endpoint_id, self.host, self.port = endpoint_id, host, port
        self.limits = limits or Limits()
        self.limits.check()
        self.jobs = Jobs(self.limits)
        self.jobs.on_final = self._tell_webhook
        self._token = secrets.token_urlsafe()
        self._added = dict(environment or {})
        self.crew = Crew(worker, self._environment, workers, self.limits, self.jobs.gone, mark=self._token)
        self._house = House(self.jobs, self.crew, self.limits, api_key, self._token)
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._clock: asyncio.Task[None] | None = None
        self._webhooks: set[asyncio.Task[bool]] = set()

    @property
    def url(self) -> str:
        """Where the page is."""
        # One cannot connect to "any address", only from it.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """What clients call the base URL, below which the endpoint's id comes: RUNPOD_ENDPOINT_BASE_URL."""
        return f"{self.url}/v2"

    async def __aenter__(self) -> LocalEndpoint:
        """Open the port and start the workers. Raises ConfigError for an address or a command that cannot be had."""
        # The bodies are limited where they are read, each verb by its own number.
        app = web.Application(middlewares=[self._answer_errors], client_max_size=0)
        app[HOUSE] = self._house
        app.add_routes([*page.routes(self.endpoint_id), *verbs.routes(self.endpoint_id)])
        app.add_routes(channel.routes(self.endpoint_id))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        try:
            try:
                site = web.TCPSite(self._runner, self.host, self.port)
                await site.start()
            except OSError as error:
                raise ConfigError(
                    f"cannot listen at {self.host}, port {self.port}: {error.strerror or error}",
                    field="entrypoint.port",
                    hint="choose another one; 0 takes any that is free",
                ) from error
            self.port = self._runner.addresses[0][1]
            self._session = aiohttp.ClientSession()
            await self.crew.start()
        except BaseException:
            await self.close()
            raise
        self._clock = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers and close the port."""
        await self.close()

    async def close(self) -> None:
        """End the workers, then everything else."""
        try:
            stopping = asyncio.create_task(self.crew.stop())
            # One turn, so that all are retired before those who wait for jobs and signals hear of it.
            await asyncio.sleep(0)
            self.jobs.bell.ring()
            await stopping
        finally:
            for task in (self._clock, *self._webhooks):
                if task is not None:
                    task.cancel()
            if self._session is not None:
                await self._session.close()
            if self._runner is not None:
                await self._runner.cleanup()

    def _environment(self, worker: str) -> Mapping[str, str]:
        ours = channel.environment(self.url, self.endpoint_id, worker, self._token)
        # At its own default, DEBUG, the SDK logs every result.
        quiet = {} if "RUNPOD_LOG_LEVEL" in os.environ else {"RUNPOD_LOG_LEVEL": "INFO"}
        return {**quiet, **self._added, **ours}

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            for worker in self.jobs.tick():
                _LOG.warning("worker %s did not let go of a stopped job and is killed", worker)
                self.crew.kill(worker)
            self.crew.tick()

    def _tell_webhook(self, job: Job) -> None:
        if job.webhook is None or self._session is None:
            return
        told = job.answer(self.jobs.clock())
        task = asyncio.create_task(deliver(self._session, job.webhook, told, self.limits))
        self._webhooks.add(task)
        task.add_done_callback(self._webhooks.discard)

    @web.middleware
    async def _answer_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._check_origin(request)
            return await handler(request)
        except Refused as error:
            return fail(error)
        except web.HTTPException as error:
            return fail(Refused(error.status, error.reason))

    def _check_origin(self, request: web.Request) -> None:
        # Any page in the user's browser can send requests to this machine: only our own page may.
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "pages of other sites may not call this endpoint")
        if self.host in ("127.0.0.1", "localhost", "::1") and re.sub(r":\d+\Z", "", host) not in _LOOPBACK:
            raise Refused(403, "ask for 127.0.0.1 or localhost")
