"""What both sides of an endpoint share as HTTP: its parts, errors as JSON, bodies with a limit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from engine.endpoint.jobs import Job, Jobs
from engine.endpoint.limits import MB, Limits
from engine.endpoint.workers import Crew


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
    """Return the body, or None if it is larger than `most` bytes.

    It is read to its end in any case: a connection that is closed early shows the sender a broken pipe, not our answer.
    """
    body = bytearray()
    size = 0
    async for piece in request.content.iter_chunked(1 << 16):
        size += len(piece)
        if size <= most:
            body += piece
    return bytes(body) if size <= most else None


def parse(body: bytes) -> Any:
    """Return the JSON that `body` holds. Raises Refused."""
    try:
        return json.loads(body)
    except ValueError as error:
        raise Refused(400, f"the body is not JSON: {error}") from error


def megabytes(size: int) -> str:
    """Return a size to read."""
    return f"{size / MB:g} MB"
