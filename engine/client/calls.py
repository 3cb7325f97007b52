"""Retries of calls, the poll interval of jobs, and addresses of an endpoint."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx2

from engine.client.answers import ClientError, connection_error
from engine.client.media import MB

BASE_URL = "https://api.runpod.ai/v2"
#: Largest body that the platform accepts in /run.
RUN_BYTES = 10 * MB
TIMEOUT = httpx2.Timeout(60, connect=10)
_FIRST, _LONGEST = 0.5, 30.0
#: Longest Retry-After in seconds that is waited for; a longer one is reported as an error.
_MAX_RETRY_AFTER = 120.0


class Attempts:
    """The attempts of one call. `safe`: the call may be repeated even if the first attempt arrived."""

    def __init__(self, tries: int, *, safe: bool) -> None:
        self._left = tries - 1
        self._made = 0
        self._safe = safe

    def failed(self, error: httpx2.TransportError) -> float:
        """Return the seconds to wait after a failed connection. Raises ClientError after the last attempt."""
        # Without a connection the call cannot have arrived.
        before = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
        if self._left <= 0 or not (self._safe or before):
            raise connection_error(error) from error
        return self._next()

    def answered(self, response: httpx2.Response) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the answer is final."""
        status = response.status_code
        # 429 means that nothing was done. After 5xx it is unknown.
        if self._left <= 0 or not (status == 429 or (self._safe and status >= 500)):
            return None
        asked = retry_after(response)
        if asked is not None and asked > _MAX_RETRY_AFTER:
            return None
        return max(self._next(), asked or 0.0)

    def _next(self) -> float:
        self._left -= 1
        longest = min(_LONGEST, _FIRST * 2.0**self._made)
        self._made += 1
        # Random, so that many clients do not retry at the same moment.
        return longest * random.uniform(0.5, 1)  # noqa: S311 - no secret


class PollInterval:
    """The seconds between two status calls: they grow while nothing changes."""

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest, self._longest = shortest, longest
        self._wait = shortest

    def next(self, *, changed: bool) -> float:
        """Return the seconds to wait."""
        self._wait = self._shortest if changed else min(self._longest, self._wait * 1.5)
        return self._wait


@dataclass(frozen=True)
class Address:
    """The address of an endpoint, and the API key for it."""

    endpoint_id: str
    api_key: str | None
    base_url: str

    def url(self, path: str) -> str:
        """Return the URL of an operation."""
        return f"{self.base_url.rstrip('/')}/{self.endpoint_id}/{path}"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a call; not for downloads, which go to another host."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def job_path(verb: str, job_id: str) -> str:
    """Return the path of an operation on a job. Raises ClientError for an id that is not usable in a path.

    The id comes from a server. It is quoted as one part of the path, so that it cannot send the API key to another
    operation or endpoint of the host.
    """
    if not job_id or job_id in (".", ".."):
        raise ClientError("the job has no valid id", code="server_error")
    return f"{verb}/{quote(job_id, safe='')}"


def hide_queries() -> None:
    """Remove the query of URLs from the request log of httpx2, because a presigned URL is a key."""
    logger = logging.getLogger("httpx2")
    if _without_queries not in logger.filters:
        logger.addFilter(_without_queries)


def _without_queries(record: logging.LogRecord) -> bool:
    if isinstance(record.args, tuple):
        record.args = tuple(
            str(value).partition("?")[0] if isinstance(value, httpx2.URL) else value for value in record.args
        )
    return True


def retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds of the Retry-After header, which may also be a date; None if there is none."""
    text = response.headers.get("Retry-After", "").strip()
    if not text:
        return None
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def submission(
    job_input: Mapping[str, Any],
    policy: Mapping[str, Any] | None,
    webhook: str | None,
    s3_config: Mapping[str, Any] | None,
) -> bytes:
    """Return the body of /run. Raises ClientError if it is larger than the platform accepts."""
    fields = {"input": job_input, "policy": policy, "webhook": webhook, "s3Config": s3_config}
    body = json.dumps({key: value for key, value in fields.items() if value is not None}, allow_nan=False).encode()
    if len(body) > RUN_BYTES:
        raise ClientError(
            f"the job has {len(body) / MB:.1f} MB, more than the limit of 10 MB",
            code="too_large",
            field="input",
            hint="send large media as URLs",
        )
    return body
