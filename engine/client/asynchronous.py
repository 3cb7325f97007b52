"""The client for asyncio programs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any

import httpx2

from engine.client.answers import ClientError, Download, Status, download_error, length, read_json, read_status, result
from engine.client.calls import BASE_URL, TIMEOUT, Address, Attempts, PollInterval, hide_queries, job_path, submission
from engine.client.media import address_of, content_of, save_video


class AsyncClient:
    """A client of one endpoint. Close it, or use it with `async with`."""

    def __init__(
        self,
        endpoint_id: str,
        api_key: str | None = None,
        base_url: str = BASE_URL,
        *,
        tries: int = 6,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`tries` is the total number of attempts of a call; `transport` replaces the network."""
        self._address = Address(endpoint_id, api_key, base_url)
        self._tries = tries
        hide_queries()
        self._http = httpx2.AsyncClient(timeout=TIMEOUT, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def submit(
        self,
        input: Mapping[str, Any],  # noqa: A002 - the platform's own name
        *,
        policy: Mapping[str, Any] | None = None,
        webhook: str | None = None,
        s3_config: Mapping[str, Any] | None = None,
    ) -> AsyncJob:
        """Send a job (docs/api.md has its fields). Raises ClientError.

        It is sent again only if the first attempt cannot have arrived: a job that runs twice costs twice.
        """
        body = submission(input, policy, webhook, s3_config)
        return AsyncJob(self, read_status(await self._call("POST", "run", body, safe=False)).id)

    def job(self, job_id: str) -> AsyncJob:
        """Return the job with that id, without a call."""
        return AsyncJob(self, job_id)

    async def health(self) -> dict[str, Any]:
        """Return the counts of jobs and workers. Raises ClientError."""
        return await self._call("GET", "health")

    async def _call(self, method: str, path: str, body: bytes | None = None, *, safe: bool = True) -> dict[str, Any]:
        attempts = Attempts(self._tries, safe=safe)
        headers = {**self._address.headers, "Content-Type": "application/json"}
        while True:
            try:
                response = await self._http.request(method, self._address.url(path), content=body, headers=headers)
            except httpx2.TransportError as error:
                wait = attempts.failed(error)
            else:
                pause = attempts.answered(response)
                if pause is None:
                    return read_json(response)
                wait = pause
            await asyncio.sleep(wait)

    async def _fetch(self, url: str, path: str | os.PathLike[str], output: Mapping[str, Any]) -> Download:
        attempts = Attempts(self._tries, safe=True)
        while True:
            try:
                # Without the API key: it is another host, and a presigned URL allows no second authorisation.
                async with self._http.stream("GET", url, follow_redirects=True) as response:
                    pause = attempts.answered(response)
                    if pause is None:
                        if not response.is_success:
                            await response.aread()
                            raise download_error(response)
                        with save_video(path, output) as file:
                            async for piece in response.aiter_bytes():
                                file.write(piece)
                            return file.done(length(response))
                    wait = pause
            except httpx2.TransportError as error:
                wait = attempts.failed(error)
            await asyncio.sleep(wait)


class AsyncJob:
    """One job of an endpoint."""

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self.id = job_id
        self._client = client

    async def status(self) -> Status:
        """Return the status of the job. Raises ClientError, with code `not_found` if it is no longer kept."""
        return read_status(await self._client._call("GET", job_path("status", self.id)))

    async def follow(self, *, shortest: float = 0.5, longest: float = 10.0) -> AsyncIterator[Status]:
        """Yield the status whenever it changes, until the job has ended. Raises ClientError.

        The interval is `shortest` seconds after a change, then grows up to `longest`.
        """
        interval, before = PollInterval(shortest, longest), None
        while True:
            status = await self.status()
            changed = status.fingerprint != before
            before = status.fingerprint
            if changed:
                yield status
            if status.final:
                return
            await asyncio.sleep(interval.next(changed=changed))

    async def wait(self, timeout: float | None = None) -> Any:
        """Return the finished job's output. Raises ClientError if it did not complete.

        After `timeout` seconds the error's code is `timeout`, and the job continues.
        """
        end = None if timeout is None else time.monotonic() + timeout
        interval = PollInterval(0.5, 5.0)
        while not (status := await self.status()).final:
            pause = interval.next(changed=False)
            if end is not None and (pause := min(pause, end - time.monotonic())) <= 0:
                raise ClientError(
                    f"the job is {status.state} after {timeout:g} s", code="timeout", hint="it continues", job=status
                )
            await asyncio.sleep(pause)
        return result(status)

    async def cancel(self) -> Status:
        """Cancel the job; one that has ended does not change. Raises ClientError."""
        return read_status(await self._client._call("POST", job_path("cancel", self.id)))

    async def retry(self) -> Status:
        """Queue a failed or timed-out job again, under its id and with its input. Raises ClientError."""
        return read_status(await self._client._call("POST", job_path("retry", self.id), safe=False))

    async def download(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> Download:
        """Wait for the job and write its video to `path`, completely or not at all. Raises ClientError.

        The video is checked with the SHA-256 of the answer if there is one, and with its length.
        """
        output = await self.wait(timeout)
        url = address_of(output)
        if url is not None:
            return await self._client._fetch(url, path, output)
        content = content_of(output)
        with save_video(path, output) as file:
            file.write(content)
            return file.done()
