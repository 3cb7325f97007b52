"""`launcher=ray`: one actor per device on a Ray cluster."""

from __future__ import annotations

import logging
import math
import os
import queue
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import II

from engine import hookimpl
from engine.components import JobWorker, Launcher
from engine.config import ComponentConfig, within
from engine.errors import Cancelled, ConfigError, EngineError, MissingExtra, WorkerLost
from engine.plugin.register import Register

#: Bytes of a local cluster's object store; Ray's default is a third of the memory, but jobs are small.
_STORE = 128 * 2**20

#: Timeout in seconds for connecting to a cluster.
_PATIENCE = 10.0


@dataclass
class RayConfig(ComponentConfig):
    """Workers on a Ray cluster: one actor per GPU, or one per machine if there is no GPU."""

    name: str = "ray"
    #: Address of the cluster: host:port, "auto" (the one this machine belongs to) or "local" (a private one).
    address: str = "${oc.env:RAY_ADDRESS,local}"
    #: Number of actors; null: one per device.
    workers: int | None = field(default=None, metadata=within(1, 10_000))
    #: CPUs that each actor reserves, and uses if it has no GPU.
    cpus: float = field(default=1.0, metadata=within(0.01, 10_000))
    #: As `device`.
    device: str = II("device")


class Ray:
    """Starts actors on an existing cluster, or on a local one that it starts."""

    def __init__(self, config: RayConfig) -> None:
        """Raise ConfigError for numbers that are out of range."""
        for name, number in (("workers", config.workers), ("cpus", config.cpus)):
            if number is not None and number <= 0:
                raise ConfigError(f"{number:g} {name}", field=f"launcher.{name}", hint="give more than 0")
        self.config = config

    @contextmanager
    def launch(self, make: Callable[[], JobWorker], most: int) -> Iterator[Sequence[JobWorker]]:
        """See `components.Launcher`. Raises MissingExtra without Ray, and ConfigError if there is no cluster."""
        # Ray prints messages and the output of its processes on stdout, which belongs to the entrypoint.
        with redirect_stdout(sys.stderr), _connected(self.config) as ray:
            gpus = 0 if self.config.device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
            machines = sum(node["Alive"] for node in ray.nodes())
            actor = ray.remote(_Actor).options(
                num_cpus=self.config.cpus, num_gpus=1 if gpus else 0, max_concurrency=2, scheduling_strategy="SPREAD"
            )
            count = min(most, self.config.workers or gpus or machines)
            workers = [_ActorProxy(ray, actor, make) for _ in range(count)]
            try:
                yield workers
            finally:
                for worker in workers:
                    worker.close()


@contextmanager
def _connected(config: RayConfig) -> Iterator[Any]:
    local = config.address == "local"
    # No usage statistics without the user's consent.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:
        # With this variable the local cluster listens only on the loopback interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # And accepts no other user. Without a token Ray would write one to the home folder, for all later clusters.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("launcher=ray", "ray", "ray") from error
    own = {
        "_node_ip_address": "127.0.0.1",
        "object_store_memory": _STORE,
        # At least as many as the actors need: otherwise Ray would wait for more CPUs.
        "num_cpus": max(os.cpu_count() or 1, math.ceil((config.workers or 1) * config.cpus)),
    }
    try:
        _reach(config.address)
        ray.init(
            config.address,
            include_dashboard=False if local else None,
            logging_level=logging.ERROR,
            **(own if local else {}),  # type: ignore[arg-type]
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster at {config.address!r}: {error}",
            field="launcher.address",
            hint="give host:port of a cluster, auto, or local; a cluster with tokens needs RAY_AUTH_MODE=token",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError if nothing listens at `address`: Ray would notice it only after minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


class _ActorProxy:
    """Proxy of a worker in an actor."""

    def __init__(self, ray: Any, actor: Any, make: Callable[[], JobWorker]) -> None:
        self._ray, self._class, self._make = ray, actor, make
        self._actor: Any = None
        self._stopped = False

    def start(self) -> None:
        if self._stopped:
            raise Cancelled
        self._actor = self._class.remote()
        with self._engine_errors():
            self._ray.get(self._actor.start.remote(self._make, str(Path.cwd())))

    def work(self, job: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> Mapping[str, Any]:
        payload: Mapping[str, Any] = {}
        with self._engine_errors():
            for update in self._actor.work.options(num_returns="streaming").remote(dict(job)):
                last, payload = self._ray.get(update)
                if not last:
                    tell(payload)
        return payload

    def stop(self) -> None:
        self._stopped = True
        # A local reference, because another thread may close it.
        if (actor := self._actor) is not None:
            actor.stop.remote()

    def close(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None:
            self._ray.kill(actor)

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EngineError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise WorkerLost(" ".join(str(error).partition("\n")[0].split())) from None


class _Actor:
    """The actor, which runs the worker."""

    def start(self, make: Callable[[], JobWorker], folder: str) -> None:
        """Create the worker in the batch's working directory, and load its weights."""
        try:
            os.chdir(folder)
        except OSError as error:
            raise ConfigError(
                f"a machine of the cluster has no folder {folder!r}",
                field="launcher",
                hint="start the batch in a folder that all machines share",
            ) from error
        self._worker = make()
        self._worker.start()

    def work(self, job: Mapping[str, Any]) -> Iterator[tuple[bool, Mapping[str, Any]]]:
        """Yield (False, progress update) repeatedly, and at the end (True, the answer)."""
        updates: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self._worker.work, job, updates.put)
            answer.add_done_callback(lambda _: updates.put(None))
            while (progress := updates.get()) is not None:
                yield False, progress
            yield True, answer.result()

    def stop(self) -> None:
        """Cancel the running job."""
        self._worker.stop()


@hookimpl
def register_launchers(register: Register[Launcher]) -> None:
    """Offer `launcher=ray`."""
    register(Ray, RayConfig)
