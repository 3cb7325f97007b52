"""The verbs that callers speak: /run, /runsync, /status, /stream, /cancel, /retry, /purge-queue, /health."""

from __future__ import annotations

import hmac
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from engine.serving.endpoint.jobs import RETRIABLE, Job, QueueFull
from engine.serving.endpoint.web import HOUSE, House, Refused, found, megabytes, parse_request, read

#: Least and most of a policy's times, in milliseconds as the caller writes them.
_POLICY = {"executionTimeout": (5_000, 7 * 86_400_000), "ttl": (10_000, 7 * 86_400_000)}
#: Least and most milliseconds that /runsync can be told to wait.
_WAIT = (1_000, 300_000)
_WINDOW = 10.0

Verb = Callable[[web.Request, House], Awaitable[web.Response]]


def routes(endpoint_id: str) -> list[web.RouteDef]:
    """Return the routes of all verbs below /v2/ENDPOINT_ID."""
    root = f"/v2/{endpoint_id}"
    pace = _Pace()
    return [
        web.post(f"{root}/run", pace.guarded("run", _run)),
        web.post(f"{root}/runsync", pace.guarded("runsync", _runsync)),
        web.get(f"{root}/status/{{job}}", pace.guarded("status", _status), allow_head=False),
        web.post(f"{root}/status/{{job}}", pace.guarded("status", _status)),
        web.get(f"{root}/stream/{{job}}", pace.guarded("stream", _stream), allow_head=False),
        web.post(f"{root}/cancel/{{job}}", pace.guarded("cancel", _cancel)),
        web.post(f"{root}/retry/{{job}}", pace.guarded("retry", _retry)),
        web.post(f"{root}/purge-queue", pace.guarded("purge-queue", _purge)),
        web.get(f"{root}/health", pace.guarded("health", _health)),
    ]


async def _run(request: web.Request, house: House) -> web.Response:
    given, options = await _submission(request, house, house.limits.run_bytes)
    job = _submit(house, given, **options)
    return web.json_response({"id": job.id, "status": job.state})


async def _runsync(request: web.Request, house: House) -> web.Response:
    wait = house.limits.sync_wait
    retention = None
    if "wait" in request.query:
        wait = retention = _milliseconds(request.query["wait"], "wait", _WAIT)
    given, options = await _submission(request, house, house.limits.sync_bytes)
    job = _submit(house, given, sync=True, retention=retention, **options)
    await house.jobs.bell.until(lambda: job.final, wait)
    return web.json_response(job.answer(house.jobs.clock()))


async def _status(request: web.Request, house: House) -> web.Response:
    return web.json_response(found(house, request).answer(house.jobs.clock()))


async def _stream(request: web.Request, house: House) -> web.Response:
    job = found(house, request)
    told = job.answer(house.jobs.clock())
    told.pop("output", None)
    told["stream"] = [{"output": piece} for piece in house.jobs.take_stream(job)]
    return web.json_response(told)


async def _cancel(request: web.Request, house: House) -> web.Response:
    job = found(house, request)
    house.jobs.cancel(job)
    return web.json_response({"id": job.id, "status": job.state})


async def _retry(request: web.Request, house: House) -> web.Response:
    job = found(house, request)
    if job.state in RETRIABLE and not job.given:
        raise Refused(400, "the job's input was let go to make room for others; send the job again")
    try:
        queued = house.jobs.retry(job)
    except QueueFull as error:
        raise _full(error) from error
    if not queued:
        raise Refused(400, f"a job that is {job.state} cannot be retried, only one that is FAILED or TIMED_OUT")
    return web.json_response({"id": job.id, "status": job.state})


async def _purge(request: web.Request, house: House) -> web.Response:
    return web.json_response({"removed": house.jobs.purge(), "status": "completed"})


async def _health(request: web.Request, house: House) -> web.Response:
    workers = house.crew.numbers(house.jobs.busy)
    return web.json_response({"jobs": house.jobs.numbers(), "workers": workers})


def _submit(house: House, given: Mapping[str, Any], **options: Any) -> Job:
    try:
        return house.jobs.submit(given, **options)
    except QueueFull as error:
        raise _full(error) from error


def _full(error: QueueFull) -> Refused:
    hint = "try again later, withdraw jobs (/cancel, /purge-queue), or raise --queue-jobs and --queue-bytes"
    return Refused(429, f"the queue is full: {error}; {hint}", headers={"Retry-After": "10"})


async def _submission(request: web.Request, house: House, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    body = await read(request, most)
    if body is None:
        raise Refused(413, f"the body is larger than {megabytes(most)}; send large media as URLs")
    sent = parse_request(body)
    if not isinstance(sent, dict) or not isinstance(sent.get("input"), dict):
        raise Refused(400, _no_input(sent))
    webhook = sent.get("webhook")
    if webhook is not None and not (isinstance(webhook, str) and webhook.startswith(("http://", "https://"))):
        raise Refused(400, "webhook: not an http or https URL")
    given = {key: sent[key] for key in ("input", "webhook", "s3Config") if sent.get(key) is not None}
    return given, {"policy": _policy(sent.get("policy")), "webhook": webhook, "size": len(body)}


def _no_input(sent: Any) -> str:
    hint = 'send {"input": {...}}'
    if isinstance(sent, str) and sent.lstrip()[:1] == "{":
        return f"the body is JSON text within JSON text: it was encoded twice; {hint}"
    if not isinstance(sent, dict):
        return f'the body has no "input": it is not an object; {hint}'
    if isinstance(sent.get("input"), str) and sent["input"].lstrip()[:1] == "{":
        return f'"input" is JSON text, not an object: leave out the quotes around it; {hint}'
    if "input" in sent:
        return f'"input" is not an object; {hint}'
    return f'the body has no "input"; {hint}'


def _policy(sent: Any) -> Mapping[str, float | bool]:
    if sent is None:
        return {}
    if not isinstance(sent, dict):
        raise Refused(400, "policy: not an object")
    told: dict[str, float | bool] = {}
    for key, value in sent.items():
        if key == "lowPriority" and isinstance(value, bool):
            told[key] = value
        elif key in _POLICY:
            told[key] = _milliseconds(value, f"policy.{key}", _POLICY[key])
        else:
            raise Refused(400, f"policy.{key}: not understood; known are executionTimeout, ttl and lowPriority")
    return told


def _milliseconds(value: Any, name: str, bounds: tuple[int, int]) -> float:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not bounds[0] <= number <= bounds[1]:
        raise Refused(400, f"{name}: not a number of milliseconds from {bounds[0]} to {bounds[1]}")
    return number / 1000


class _Pace:
    """Who may call, and how often."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)

    def guarded(self, name: str, verb: Verb) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Return `verb` as a handler that lets in whoever has the key and is not too fast."""

        async def handler(request: web.Request) -> web.Response:
            house = request.app[HOUSE]
            if house.api_key is not None:
                # The platform takes the key with or without the word.
                key = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
                # Bytes that are no text arrive as lone surrogates.
                if not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), house.api_key.encode()):
                    raise Refused(401, "the API key is missing or wrong; send Authorization: Bearer KEY")
            if house.limits.rate:
                self._count(name, house.limits.rate)
            return await verb(request, house)

        return handler

    def _count(self, name: str, rate: int) -> None:
        calls, now = self._calls[name], time.monotonic()
        while calls and now - calls[0] >= _WINDOW:
            calls.popleft()
        if len(calls) >= rate:
            # The header has whole seconds: rounded up, or a caller who obeys would come too early.
            wait = int(_WINDOW - (now - calls[0])) + 1
            raise Refused(429, f"more than {rate} calls of /{name} in 10 s", headers={"Retry-After": str(wait)})
        calls.append(now)
