"""Where the studio's jobs run: on an engine in this process, or on a worker elsewhere."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from engine.client import Client, ClientError, file
from engine.client.answers import Status
from engine.components import Service
from engine.serving.studio.fields import FieldError
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine

#: Seconds that a plan or the description of a worker elsewhere may take: it waits behind the worker's jobs.
PATIENCE = 30.0


class Backend(Protocol):
    """What the studio needs of an engine. Methods raise ClientError, and may be called from any thread."""

    #: URL and id of the endpoint, without a key; None for this process.
    endpoint: str | None
    #: The engine's overrides, for the command line of a job.
    overrides: Sequence[str]
    #: Whether a window of a finished video can be made again.
    retakes: bool

    def capabilities(self) -> Mapping[str, Any]:
        """Return what the worker answers to `action: capabilities`."""

    def address(self, path: Path, name: str) -> str:
        """Return a file as an address for a job, of the form's field `name`. Raises FieldError if it is too large."""

    def plan(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the worker answers to `action: plan`, also an error."""

    def submit(self, name: str, job: Mapping[str, Any], *, retake: tuple[int, int | None] | None = None) -> str:
        """Start a job and return its id. `retake`: window from 1, and seed."""

    def status(self, job: str) -> Status:
        """Return the status of a job."""

    def cancel(self, job: str) -> None:
        """Cancel a job."""

    def fetch(self, job: str, path: Path) -> None:
        """Write the video of a finished job to `path`."""

    def close(self) -> None:
        """End everything that runs, and release the device."""


class LocalBackend:
    """An engine in this process; it does one job after the other, in threads."""

    endpoint: str | None = None
    retakes = True

    def __init__(self, service: Service, terms: Terms, *, overrides: Sequence[str]) -> None:
        """`service` reads media of the history and writes videos to a disk; no weights are loaded yet."""
        self.overrides: Sequence[str] = tuple(overrides)
        self._terms = terms
        self._warm_engine = WarmEngine(service)
        self._planner = Handler(self._warm_engine, self._terms)
        self._statuses: dict[str, Status] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._turn = asyncio.Lock()
        self._thread = threading.Thread(target=self._loop.run_forever, name="multitalk-studio", daemon=True)
        self._thread.start()

    def capabilities(self) -> Mapping[str, Any]:
        """See `Backend`."""
        return self._planner.capabilities()

    def address(self, path: Path, name: str) -> str:
        """See `Backend`."""
        return str(path)

    def plan(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Backend`."""
        return asyncio.run(self._planner.handle({"input": {**job, "action": "plan"}}))

    def submit(self, name: str, job: Mapping[str, Any], *, retake: tuple[int, int | None] | None = None) -> str:
        """See `Backend`."""
        self._statuses[name] = Status(id=name, state="IN_QUEUE")
        payload = {"id": name, "input": {**job, "output": {"filename": f"{name}.mp4"}}}

        async def begin() -> None:
            self._tasks[name] = asyncio.create_task(self._run(name, payload, retake))

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()
        return name

    def status(self, job: str) -> Status:
        """See `Backend`."""
        if (status := self._statuses.get(job)) is None:
            raise ClientError("the studio was stopped while it made this video", code="not_found")
        return status

    def cancel(self, job: str) -> None:
        """See `Backend`."""
        if task := self._tasks.get(job):
            self._loop.call_soon_threadsafe(task.cancel)

    def fetch(self, job: str, path: Path) -> None:
        """See `Backend`."""
        output = self.status(job).output
        shutil.move(str(output["video_path"]), path)

    def close(self) -> None:
        """See `Backend`."""

        async def end() -> None:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._warm_engine.close()

    async def _run(self, name: str, payload: Mapping[str, Any], retake: tuple[int, int | None] | None) -> None:
        loop, state, output = self._loop, "CANCELLED", None
        began = loop.time()
        try:
            async with self._turn:
                began = loop.time()
                self._statuses[name] = replace(self._statuses[name], state="IN_PROGRESS")
                output = await self._make(name, payload, retake)
                state = "FAILED" if "error" in output else "COMPLETED"
        except asyncio.CancelledError:
            pass
        finally:
            error = output.get("error") if output else None
            took = loop.time() - began
            self._statuses[name] = Status(id=name, state=state, output=output, error=error, execution=took)
            self._tasks.pop(name, None)

    async def _make(
        self, name: str, payload: Mapping[str, Any], retake: tuple[int, int | None] | None
    ) -> dict[str, Any]:
        def tell(progress: Mapping[str, Any]) -> None:
            self._statuses[name] = replace(self._statuses[name], output=progress)

        warm_engine = self._warm_engine
        if retake is None:
            return await Handler(warm_engine, self._terms, poster=lambda _: tell).handle(payload)
        window, seed = retake
        words = [f"resume.retake={window}", *([] if seed is None else [f"resume.retake_seed={seed}"])]
        other = WarmEngine(warm_engine.service.open(words))
        # Two models must not be loaded at once: the other weights are read again by the next job.
        await asyncio.to_thread(warm_engine.service.close)
        try:
            return await Handler(other, self._terms, poster=lambda _: tell).handle(payload)
        finally:
            await asyncio.to_thread(other.close)


class RemoteBackend:
    """A worker behind an endpoint, on RunPod or elsewhere, through `engine.client`."""

    overrides: Sequence[str] = ()
    retakes = False

    def __init__(self, base_url: str, endpoint_id: str, api_key: str | None) -> None:
        """No call is made yet."""
        self.endpoint: str | None = f"{base_url.rstrip('/')}/{endpoint_id}"
        self._client = Client(endpoint_id, api_key=api_key, base_url=base_url, tries=2)
        self._known: Mapping[str, Any] | None = None

    def capabilities(self) -> Mapping[str, Any]:
        """See `Backend`. It is asked once."""
        if self._known is None:
            self._known = self._ask({"action": "capabilities"})
        return self._known

    def address(self, path: Path, name: str) -> str:
        """See `Backend`."""
        try:
            return file(path)
        except ClientError as error:
            if error.code != "too_large":
                raise
            text = "This file is larger than 7 MB, which a worker elsewhere does not take. Make it smaller."
            raise FieldError(name, text) from error

    def plan(self, job: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Backend`."""
        try:
            return self._ask({**job, "action": "plan"})
        except ClientError as error:
            return {"error": str(error), "error_code": error.code, "field": error.field, "hint": error.hint}

    def _ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer of a short job. One that takes too long is cancelled: nobody waits for it any more."""
        asked = self._client.submit(job)
        try:
            return dict(asked.wait(PATIENCE))
        except ClientError as error:
            if error.code != "timeout":
                raise
            with suppress(ClientError):
                asked.cancel()
            raise ClientError(
                "the worker is busy or still starting", code="timeout", hint="it answers when its job is done"
            ) from error

    def submit(self, name: str, job: Mapping[str, Any], *, retake: tuple[int, int | None] | None = None) -> str:
        """See `Backend`. Raises ClientError for a retake, which a job of an endpoint cannot ask for."""
        if retake is not None:
            raise ClientError("a worker elsewhere cannot make windows again", code="refused")
        return self._client.submit(job).id

    def status(self, job: str) -> Status:
        """See `Backend`."""
        return self._client.job(job).status()

    def cancel(self, job: str) -> None:
        """See `Backend`."""
        self._client.job(job).cancel()

    def fetch(self, job: str, path: Path) -> None:
        """See `Backend`."""
        self._client.job(job).download(path, timeout=60)

    def close(self) -> None:
        """See `Backend`. Jobs at the worker continue."""
        self._client.close()
