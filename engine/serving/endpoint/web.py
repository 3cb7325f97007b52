"""HTTP helpers that both APIs of an endpoint share: its state, errors as JSON, bodies with a size limit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from engine.serving.endpoint.jobs import EndpointJob, JobQueue
from engine.serving.endpoint.limits import MB, EndpointLimits
from engine.serving.endpoint.worker_processes import WorkerPool


@dataclass
class AppState:
    """The state of one endpoint that its HTTP handlers use."""

    jobs: JobQueue
    pool: WorkerPool
    limits: EndpointLimits
    api_key: str | None
    #: Known only to the workers that this endpoint started.
    token: str


APP_STATE = web.AppKey("state", AppState)
#: Largest number of values in a request (counted roughly) and deepest nesting. Far more than a job of this engine has:
#: other workers can be tested here too, and their jobs may hold whole graphs.
_VALUES, _DEPTH = 250_000, 100


class ApiError(Exception):
    """The request is answered with this HTTP status and error text."""

    def __init__(self, status: int, text: str, *, headers: dict[str, str] | None = None) -> None:
        self.status, self.text, self.headers = status, text, headers
        super().__init__(text)


def error_response(error: ApiError) -> web.Response:
    """Return the HTTP response for an error."""
    return web.json_response({"error": error.text}, status=error.status, headers=error.headers)


def find_job(state: AppState, request: web.Request) -> EndpointJob:
    """Return the job that the request's path names. Raises ApiError (404) if there is none."""
    job = state.jobs.find(request.match_info["job"])
    if job is None:
        raise ApiError(404, "there is no such job; results are kept only for a limited time")
    return job


async def read_body(request: web.Request, most: int) -> bytes | None:
    """Return the body, or None if it is larger than `most` bytes. Raises ApiError if it cannot be read.

    It is always read to its end: if the connection closes early, the sender sees a broken pipe, not our answer.
    """
    body = bytearray()
    size = 0
    try:
        async for piece in request.content.iter_chunked(1 << 16):
            size += len(piece)
            if size <= most:
                body += piece
    except (ConnectionError, web.HTTPException):
        raise
    except Exception as error:
        # aiohttp raises several own errors: for a broken gzip stream, a chunk without a length, a truncated body.
        what = request.headers.get("Content-Encoding") or request.headers.get("Transfer-Encoding") or "Content-Length"
        raise ApiError(400, f"the body cannot be read: it does not match its headers ({_printable(what)})") from error
    return bytes(body) if size <= most else None


def parse_json(body: bytes) -> Any:
    """Return the JSON that a worker sent. Raises ApiError."""
    return _parse(body)


def parse_request(body: bytes) -> Any:
    """Return the JSON that a caller sent. Raises ApiError.

    Strict, because the job is serialised again for the worker: no NaN and no infinity (JSON has neither), no duplicate
    names in an object (one value would be lost), and limits on the nesting depth and the number of values.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _VALUES:
        raise ApiError(400, f"the body holds more than {_VALUES} values; send large media as URLs or base64 text")
    value = _parse(body, parse_constant=_reject_constant, object_pairs_hook=_reject_duplicates)
    waiting = [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        if depth > _DEPTH:
            raise ApiError(400, f"the body is nested deeper than {_DEPTH} lists and objects")
        if isinstance(inner, float) and not math.isfinite(inner):
            raise ApiError(400, "the body holds a number that is too large for JSON parsers")
        parts: Sequence[Any] = list(inner.values()) if isinstance(inner, Mapping) else inner
        if isinstance(inner, list | Mapping):
            waiting += [(part, depth + 1) for part in parts]
    return value


def _parse(body: bytes, **options: Any) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), **options)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not JSON: invalid UTF-8 at byte {error.start + 1}") from error
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply") from error
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {_printable(str(error))}") from error


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the name {twice[:40]!r} twice")
    return fields


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def megabytes(size: int) -> str:
    """Return a size in bytes as text in MB."""
    return f"{size / MB:g} MB"
