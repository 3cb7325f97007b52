"""The client for programs without asyncio: its methods block."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx2

from engine.client.answers import ClientError, Download, Status, download_error, length, read_json, read_status, result
from engine.client.calls import BASE_URL, TIMEOUT, Address, Attempts, PollInterval, hide_queries, job_path, submission
from engine.client.media import address_of, content_of, save_video


class Client:
    """A client of one endpoint. Close it, or use it with `with`."""

    def __init__(
        self,
        endpoint_id: str,
        api_key: str | None = None,
        base_url: str = BASE_URL,
        *,
        tries: int = 6,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """`tries` is the total number of attempts of a call; `transport` replaces the network."""
        self._address = Address(endpoint_id, api_key, base_url)
        self._tries = tries
        hide_queries()
        self._http = httpx2.Client(timeout=TIMEOUT, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(
        self,
        input: Mapping[str, Any],  # noqa: A002 - the platform's own name
        *,
        policy: Mapping[str, Any] | None = None,
        webhook: str | None = None,
        s3_config: Mapping[str, Any] | None = None,
    ) -> Job:
        """Send a job (docs/api.md has its fields). Raises ClientError.

        It is sent again only if the first attempt cannot have arrived: a job that runs twice costs twice.
        """
        body = submission(input, policy, webhook, s3_config)
        return Job(self, read_status(self._call("POST", "run", body, safe=False)).id)

    def job(self, job_id: str) -> Job:
        """Return the job with that id, without a call."""
        return Job(self, job_id)

    def health(self) -> dict[str, Any]:
        """Return the counts of jobs and workers. Raises ClientError."""
        return self._call("GET", "health")

    def _call(self, method: str, path: str, body: bytes | None = None, *, safe: bool = True) -> dict[str, Any]:
        attempts = Attempts(self._tries, safe=safe)
        headers = {**self._address.headers, "Content-Type": "application/json"}
        while True:
            try:
                response = self._http.request(method, self._address.url(path), content=body, headers=headers)
            except httpx2.TransportError as error:
                wait = attempts.failed(error)
            else:
                pause = attempts.answered(response)
                if pause is None:
                    return read_json(response)
                wait = pause
            time.sleep(wait)

    def _fetch(self, url: str, path: str | os.PathLike[str], output: Mapping[str, Any]) -> Download:
        attempts = Attempts(self._tries, safe=True)
        while True:
            try:
                # Without the API key: it is another host, and a presigned URL allows no second authorisation.
                with self._http.stream("GET", url, follow_redirects=True) as response:
                    pause = attempts.answered(response)
                    if pause is None:
                        if not response.is_success:
                            response.read()
                            raise download_error(response)
                        with save_video(path, output) as file:
                            for piece in response.iter_bytes():
                                file.write(piece)
                            return file.done(length(response))
                    wait = pause
            except httpx2.TransportError as error:
                wait = attempts.failed(error)
            time.sleep(wait)


class Job:
    """One job of an endpoint."""

    def __init__(self, client: Client, job_id: str) -> None:
        self.id = job_id
        self._client = client

    def status(self) -> Status:
        """Return the status of the job. Raises ClientError, with code `not_found` if it is no longer kept."""
        return read_status(self._client._call("GET", job_path("status", self.id)))

    def follow(self, *, shortest: float = 0.5, longest: float = 10.0) -> Iterator[Status]:
        """Yield the status whenever it changes, until the job has ended. Raises ClientError.

        The interval is `shortest` seconds after a change, then grows up to `longest`.
        """
        interval, before = PollInterval(shortest, longest), None
        while True:
            status = self.status()
            changed = status.fingerprint != before
            before = status.fingerprint
            if changed:
                yield status
            if status.final:
                return
            time.sleep(interval.next(changed=changed))

    def wait(self, timeout: float | None = None) -> Any:
        """Return the finished job's output. Raises ClientError if it did not complete.

        After `timeout` seconds the error's code is `timeout`, and the job continues.
        """
        end = None if timeout is None else time.monotonic() + timeout
        interval = PollInterval(0.5, 5.0)
        while not (status := self.status()).final:
            pause = interval.next(changed=False)
            if end is not None and (pause := min(pause, end - time.monotonic())) <= 0:
                raise ClientError(
                    f"the job is {status.state} after {timeout:g} s", code="timeout", hint="it continues", job=status
                )
            time.sleep(pause)
        return result(status)

    def cancel(self) -> Status:
        """Cancel the job; one that has ended does not change. Raises ClientError."""
        return read_status(self._client._call("POST", job_path("cancel", self.id)))

    def retry(self) -> Status:
        """Queue a failed or timed-out job again, under its id and with its input. Raises ClientError."""
        return read_status(self._client._call("POST", job_path("retry", self.id), safe=False))

    def download(self, path: str | os.PathLike[str], *, timeout: float | None = None) -> Download:
        """Wait for the job and write its video to `path`, completely or not at all. Raises ClientError.

        The video is checked with the SHA-256 of the answer if there is one, and with its length.
        """
        output = self.wait(timeout)
        url = address_of(output)
        if url is not None:
            return self._client._fetch(url, path, output)
        content = content_of(output)
        with save_video(path, output) as file:
            file.write(content)
            return file.done()
