"""What both sides of an endpoint share as HTTP: its parts, errors as JSON, bodies with a limit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from engine.serving.endpoint.jobs import Job, Jobs
from engine.serving.endpoint.limits import MB, Limits
from engine.serving.endpoint.worker_processes import Crew


@dataclass
class House:
    """What the handlers of one endpoint work on."""

    jobs: Jobs
    crew: Crew
    limits: Limits
    api_key: str | None
    #: Only a worker that this endpoint started knows it.
    token: str


HOUSE = web.AppKey("house", House)
#: Most values of a request, roughly, and lists and objects within each other. Far more than a job of ours has: workers
#: of others may be tried here too, and their jobs may hold whole graphs.
_VALUES, _DEPTH = 250_000, 100


class Refused(Exception):
    """A request is answered with an error."""

    def __init__(self, status: int, text: str, *, headers: dict[str, str] | None = None) -> None:
        self.status, self.text, self.headers = status, text, headers
        super().__init__(text)


def fail(error: Refused) -> web.Response:
    """Return the answer that tells an error."""
    return web.json_response({"error": error.text}, status=error.status, headers=error.headers)


def found(house: House, request: web.Request) -> Job:
    """Return the job that the path names. Raises Refused."""
    job = house.jobs.find(request.match_info["job"])
    if job is None:
        raise Refused(404, "there is no such job; results are kept for a while only")
    return job


async def read(request: web.Request, most: int) -> bytes | None:
    """Return the body, or None if it is larger than `most` bytes. Raises Refused for one that cannot be read.

    It is read to its end in any case: a connection that is closed early shows the sender a broken pipe, not our answer.
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
        # aiohttp raises several of its own for a broken gzip stream, a chunk without a length, a body that is cut off.
        what = request.headers.get("Content-Encoding") or request.headers.get("Transfer-Encoding") or "Content-Length"
        raise Refused(400, f"the body cannot be read: it is not what its headers say ({_printable(what)})") from error
    return bytes(body) if size <= most else None


def parse(body: bytes) -> Any:
    """Return the JSON that a worker sent. Raises Refused."""
    return _parsed(body)


def parse_request(body: bytes) -> Any:
    """Return the JSON that a caller sent. Raises Refused.

    Strict, since the job is written anew for the worker: without NaN and infinities, which JSON does not have, without
    a name that an object bears twice, of which one would be lost, and with bounds on its depth and its values.
    """
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _VALUES:
        raise Refused(400, f"the body holds more than {_VALUES} values; send large media as URLs or base64 text")
    value = _parsed(body, parse_constant=_no_number, object_pairs_hook=_once)
    waiting = [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        if depth > _DEPTH:
            raise Refused(400, f"the body is nested deeper than {_DEPTH} lists and objects")
        if isinstance(inner, float) and not math.isfinite(inner):
            raise Refused(400, "the body holds a number that is too large for JSON's readers")
        parts: Sequence[Any] = list(inner.values()) if isinstance(inner, Mapping) else inner
        if isinstance(inner, list | Mapping):
            waiting += [(part, depth + 1) for part in parts]
    return value


def _parsed(body: bytes, **options: Any) -> Any:
    try:
        return json.loads(body.decode("utf-8-sig"), **options)
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is not JSON: it is not UTF-8 from byte {error.start + 1} on") from error
    except RecursionError as error:
        raise Refused(400, "the body is nested too deep") from error
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {_printable(str(error))}") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number in JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the name {twice[:40]!r} twice")
    return found


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def megabytes(size: int) -> str:
    """Return a size to read."""
    return f"{size / MB:g} MB"
