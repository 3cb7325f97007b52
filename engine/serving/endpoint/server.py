"""The whole endpoint on one port: job queue, workers, the APIs for clients and for workers, and the page."""

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

from engine.errors import ConfigError
from engine.files.live import remove_job
from engine.serving.endpoint import client_api, live, page, worker_api
from engine.serving.endpoint.jobs import EndpointJob, JobQueue
from engine.serving.endpoint.limits import EndpointLimits
from engine.serving.endpoint.web import APP_STATE, ApiError, AppState, error_response
from engine.serving.endpoint.webhook import deliver
from engine.serving.endpoint.worker_processes import WorkerPool
from engine.serving.hosts import is_address, is_loopback, normalise_host

_LOG = logging.getLogger(__name__)
_TICK = 0.1
#: Host names of this machine that do not depend on DNS.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class LocalEndpoint:
    """One endpoint, which runs inside `async with`."""

    def __init__(
        self,
        worker: Sequence[str],
        *,
        endpoint_id: str = "local",
        host: str = "127.0.0.1",
        port: int = 0,
        workers: int = 1,
        api_key: str | None = None,
        allowed_hosts: Sequence[str] = (),
        limits: EndpointLimits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`worker` is the command of a worker, `environment` its additional variables; port 0 takes any free port.

        `allowed_hosts` are further host names, without a port, that callers may use. Raises ConfigError, also for a
        `host` that other machines can reach if there is neither a key nor an allowed host name.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", endpoint_id):
            raise ConfigError(f"{endpoint_id!r} is not a valid endpoint id", hint="use letters, digits, dashes")
        if not 0 <= port <= 65535:
            raise ConfigError(f"port {port} is out of range", field="entrypoint.port", hint="0 (any free one) to 65535")
        if workers < 0:
            raise ConfigError(f"{workers} workers", field="entrypoint.workers", hint="give 0 or more")
        if api_key == "":
            raise ConfigError("an empty key", field="entrypoint.api_key", hint="give one, or leave it out")
        self._allowed = frozenset({*_LOOPBACK, normalise_host(host), *map(normalise_host, allowed_hosts)} - {""})
        self._addresses_allowed = api_key is not None
        if api_key is None and not allowed_hosts and not is_loopback(host):
            raise ConfigError(
                f"other machines can reach {host!r} without a key",
                field="entrypoint.host",
                hint="give --api-key KEY, or --allowed-host NAME with the host name that they use",
            )
        self.endpoint_id, self.host, self.port = endpoint_id, host, port
        self.limits = limits or EndpointLimits()
        self.limits.check()
        self.jobs = JobQueue(self.limits)
        self.jobs.on_final = self._notify_webhook
        self.jobs.on_forget = self._remove_published
        self._token = secrets.token_urlsafe()
        self._extra_environment = dict(environment or {})
        self.pool = WorkerPool(
            worker, self._environment, workers, self.limits, self.jobs.worker_ended, mark=self._token
        )
        self._state = AppState(self.jobs, self.pool, self.limits, api_key, self._token)
        self._runner: _Runner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._webhooks: set[asyncio.Task[bool]] = set()

    @property
    def url(self) -> str:
        """URL of the page."""
        # A client cannot connect to "any address".
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The base URL for clients (RUNPOD_ENDPOINT_BASE_URL); the endpoint's id follows it in a path."""
        return f"{self.url}/v2"

    async def __aenter__(self) -> LocalEndpoint:
        """Open the port and start the workers. Raises ConfigError if the address or the command cannot be used."""
        # `read_body` limits the size of a body, with another limit for each operation.
        app = web.Application(middlewares=[self._answer_errors], client_max_size=0)
        app[APP_STATE] = self._state
        app.add_routes([*page.routes(self.endpoint_id), *client_api.routes(self.endpoint_id)])
        app.add_routes([*worker_api.routes(self.endpoint_id), *live.routes()])
        self._runner = _Runner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        try:
            try:
                site = web.TCPSite(self._runner, self.host, self.port)
                await site.start()
            except OSError as error:
                raise ConfigError(
                    f"cannot listen on {self.host}, port {self.port}: {error.strerror or error}",
                    field="entrypoint.port",
                    hint="choose another port; 0 takes any free one",
                ) from error
            self.port = self._runner.addresses[0][1]
            self._session = aiohttp.ClientSession()
            await self.pool.start()
        except BaseException:
            await self.close()
            raise
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers and close the port."""
        await self.close()

    async def close(self) -> None:
        """Stop the workers, then everything else."""
        try:
            stopping = asyncio.create_task(self.pool.stop())
            # One turn of the event loop, so that all workers are retired before the waiting requests wake up.
            await asyncio.sleep(0)
            self.jobs.changed.notify_all()
            await stopping
        finally:
            for task in (self._ticker, *self._webhooks):
                if task is not None:
                    task.cancel()
            if self._session is not None:
                await self._session.close()
            if self._runner is not None:
                await self._runner.cleanup()

    def _environment(self, worker: str) -> Mapping[str, str]:
        ours = worker_api.environment(self.url, self.endpoint_id, worker, self._token)
        # At its default level, DEBUG, the SDK logs every result.
        quiet = {} if "RUNPOD_LOG_LEVEL" in os.environ else {"RUNPOD_LOG_LEVEL": "INFO"}
        published = {"MULTITALK_LIVE_FOLDER": str(self.pool.live), "MULTITALK_LIVE_URL": f"{self.url}{live.ROOT}"}
        return {**quiet, **published, **self._extra_environment, **ours}

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            for worker in self.jobs.tick():
                self.pool.kill(worker, "did not stop a cancelled job")
            self.pool.tick()

    def _notify_webhook(self, job: EndpointJob) -> None:
        if job.webhook is None or self._session is None:
            return
        report = job.answer(self.jobs.clock())
        task = asyncio.create_task(deliver(self._session, job.webhook, report, self.limits))
        self._webhooks.add(task)
        task.add_done_callback(self._webhooks.discard)

    def _remove_published(self, job: EndpointJob) -> None:
        if self.pool.live is not None:
            remove_job(self.pool.live, job.id)

    @web.middleware
    async def _answer_errors(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            self._check_origin(request)
            return await handler(request)
        except ApiError as error:
            return error_response(error)
        except web.HTTPException as error:
            return error_response(ApiError(error.status, error.reason))
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - callers always get JSON; the log has the traceback
            _LOG.exception("%s %s", request.method, request.path)
            return error_response(ApiError(500, "internal error of the endpoint; see its log"))

    def _check_origin(self, request: web.Request) -> None:
        # Any page in the user's browser can send requests to this machine; only our own page is allowed to.
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise ApiError(403, "pages of other sites may not call this endpoint")
        # A site can also make its own host name resolve to this machine (DNS rebinding); then Origin and Host agree.
        # With an IP address that is not possible.
        name = normalise_host(re.sub(r":\d*\Z", "", host))
        if name not in self._allowed and not (self._addresses_allowed and is_address(name)):
            raise ApiError(403, "use 127.0.0.1 or localhost, or start the endpoint with --allowed-host NAME")


class _Handler(web.RequestHandler):
    """One connection; a request that is not valid HTTP gets a JSON answer, too."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """See aiohttp."""
        if status >= 500:
            _LOG.error("internal server error", exc_info=exc)
        text = " ".join((message or "").split()) or "internal server error"
        if status >= 500:
            text = "internal error of the endpoint; see its log"
        answer = error_response(ApiError(status, text))
        answer.force_close()
        return answer


class _Server(web.Server):
    def __call__(self) -> _Handler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp has no option for the class that answers parser errors.
        server.__class__ = _Server
        return server
