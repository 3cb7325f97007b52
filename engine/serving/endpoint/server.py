"""The endpoint as a whole: jobs, workers, both sides of the protocol and the page, behind one port."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType

import aiohttp
from aiohttp import web

from engine.errors import ConfigError
from engine.serving.endpoint import client_api, page, worker_api
from engine.serving.endpoint.jobs import Job, Jobs
from engine.serving.endpoint.limits import Limits
from engine.serving.endpoint.web import HOUSE, House, Refused, fail
from engine.serving.endpoint.webhook import deliver
from engine.serving.endpoint.worker_processes import Crew

_LOG = logging.getLogger(__name__)
_TICK = 0.1
#: Names under which a server may be asked for from its own machine, whatever a name server says.
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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
        allowed_hosts: Sequence[str] = (),
        limits: Limits | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`worker` is the command of a worker, `environment` what it gets beside ours; port 0 takes any free one.

        `allowed_hosts` are names, without a port, under which callers may ask for it, beside this machine's own. Raises
        ConfigError, also for a `host` that others can reach without a key or a name that they have to know.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", endpoint_id):
            raise ConfigError(f"{endpoint_id!r} cannot be an endpoint's id", hint="letters, digits, dashes")
        if not 0 <= port <= 65535:
            raise ConfigError(f"there is no port {port}", field="entrypoint.port", hint="0 (any free one) to 65535")
        if workers < 0:
            raise ConfigError(f"{workers} workers", field="entrypoint.workers", hint="give 0 or more")
        if api_key == "":
            raise ConfigError("an empty key", field="entrypoint.api_key", hint="give one, or leave it out")
        self._allowed = frozenset({*_LOOPBACK, bare_host(host), *map(bare_host, allowed_hosts)} - {""})
        self._addresses = api_key is not None
        if api_key is None and not allowed_hosts and not is_loopback(host):
            raise ConfigError(
                f"others can reach {host!r}, and nothing keeps them out",
                field="entrypoint.host",
                hint="give --api-key KEY, or --allowed-host NAME with the name that they ask for",
            )
        self.endpoint_id, self.host, self.port = endpoint_id, host, port
        self.limits = limits or Limits()
        self.limits.check()
        self.jobs = Jobs(self.limits)
        self.jobs.on_final = self._tell_webhook
        self._token = secrets.token_urlsafe()
        self._added = dict(environment or {})
        self.crew = Crew(worker, self._environment, workers, self.limits, self.jobs.gone, mark=self._token)
        self._house = House(self.jobs, self.crew, self.limits, api_key, self._token)
        self._runner: _Runner | None = None
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
        app.add_routes([*page.routes(self.endpoint_id), *client_api.routes(self.endpoint_id)])
        app.add_routes(worker_api.routes(self.endpoint_id))
        self._runner = _Runner(app, access_log=None, shutdown_timeout=1)
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
        ours = worker_api.environment(self.url, self.endpoint_id, worker, self._token)
        # At its own default, DEBUG, the SDK logs every result.
        quiet = {} if "RUNPOD_LOG_LEVEL" in os.environ else {"RUNPOD_LOG_LEVEL": "INFO"}
        return {**quiet, **self._added, **ours}

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            for worker in self.jobs.tick():
                self.crew.kill(worker, "did not let go of a stopped job")
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
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 - a caller gets JSON, whatever happens; the log has the rest
            _LOG.exception("%s %s", request.method, request.path)
            return fail(Refused(500, "a bug of the endpoint; its log says more"))

    def _check_origin(self, request: web.Request) -> None:
        # Any page in the user's browser can send requests to this machine: only our own page may.
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refused(403, "pages of other sites may not call this endpoint")
        # And a page can have its own name point here; then Origin and Host agree. Nobody can do that with an address.
        name = bare_host(re.sub(r":\d*\Z", "", host))
        if name not in self._allowed and not (self._addresses and is_address(name)):
            raise Refused(403, "ask for 127.0.0.1 or localhost, or start the endpoint with --allowed-host NAME")


def bare_host(host: str) -> str:
    """Return a host in one spelling: small letters, no brackets, no dot at its end."""
    name = host.strip().lower().removesuffix(".")
    return name[1:-1] if name.startswith("[") and name.endswith("]") else name


def is_address(host: str) -> bool:
    """Return whether `host` is an IP address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether a server that listens at `host` can be reached from this machine alone."""
    name = bare_host(host)
    if is_address(name):
        return ipaddress.ip_address(name).is_loopback
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)} if name else set()
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(address.partition("%")[0]).is_loopback for address in found)


class _Handler(web.RequestHandler):
    """One connection; what is no HTTP at all is answered as JSON, too."""

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
            _LOG.error("an error of the server", exc_info=exc)
        told = " ".join((message or "").split()) or "an error of the server"
        answer = fail(Refused(status, told if status < 500 else "a bug of the endpoint; its log says more"))
        answer.force_close()
        return answer


class _Server(web.Server):
    def __call__(self) -> _Handler:
        return _Handler(self, loop=self._loop, **self._kwargs)


class _Runner(web.AppRunner):
    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        # aiohttp has no way to be told which class answers for its parser.
        server.__class__ = _Server
        return server
