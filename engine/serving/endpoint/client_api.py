"""The API for clients: /run, /runsync, /status, /stream, /cancel, /retry, /purge-queue, /health."""

from __future__ import annotations

import hmac
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from engine.serving.endpoint.jobs import RETRIABLE, EndpointJob, QueueFull
from engine.serving.endpoint.web import APP_STATE, ApiError, AppState, find_job, megabytes, parse_request, read_body

#: Range of a policy's times, in milliseconds as the caller writes them.
_POLICY = {"executionTimeout": (5_000, 7 * 86_400_000), "ttl": (10_000, 7 * 86_400_000)}
#: Range of the waiting time of /runsync, in milliseconds.
_WAIT = (1_000, 300_000)
_WINDOW = 10.0

Verb = Callable[[web.Request, AppState], Awaitable[web.Response]]


def routes(endpoint_id: str) -> list[web.RouteDef]:
    """Return the routes of all operations below /v2/ENDPOINT_ID."""
    root = f"/v2/{endpoint_id}"
    access = _AccessControl()
    return [
        web.post(f"{root}/run", access.protect("run", _run)),
        web.post(f"{root}/runsync", access.protect("runsync", _runsync)),
        web.get(f"{root}/status/{{job}}", access.protect("status", _status), allow_head=False),
        web.post(f"{root}/status/{{job}}", access.protect("status", _status)),
        web.get(f"{root}/stream/{{job}}", access.protect("stream", _stream), allow_head=False),
        web.post(f"{root}/cancel/{{job}}", access.protect("cancel", _cancel)),
        web.post(f"{root}/retry/{{job}}", access.protect("retry", _retry)),
        web.post(f"{root}/purge-queue", access.protect("purge-queue", _purge)),
        web.get(f"{root}/health", access.protect("health", _health)),
    ]


async def _run(request: web.Request, state: AppState) -> web.Response:
    payload, options = await _submission(request, state, state.limits.run_bytes)
    job = _submit(state, payload, **options)
    return web.json_response({"id": job.id, "status": job.state})


async def _runsync(request: web.Request, state: AppState) -> web.Response:
    wait = state.limits.sync_wait
    retention = None
    if "wait" in request.query:
        wait = retention = _milliseconds(request.query["wait"], "wait", _WAIT)
    payload, options = await _submission(request, state, state.limits.sync_bytes)
    job = _submit(state, payload, sync=True, retention=retention, **options)
    await state.jobs.changed.wait_for(lambda: job.final, wait)
    return web.json_response(job.answer(state.jobs.clock()))


async def _status(request: web.Request, state: AppState) -> web.Response:
    return web.json_response(find_job(state, request).answer(state.jobs.clock()))


async def _stream(request: web.Request, state: AppState) -> web.Response:
    job = find_job(state, request)
    report = job.answer(state.jobs.clock())
    report.pop("output", None)
    report["stream"] = [{"output": piece} for piece in state.jobs.take_stream(job)]
    return web.json_response(report)


async def _cancel(request: web.Request, state: AppState) -> web.Response:
    job = find_job(state, request)
    state.jobs.cancel(job)
    return web.json_response({"id": job.id, "status": job.state})


async def _retry(request: web.Request, state: AppState) -> web.Response:
    job = find_job(state, request)
    if job.state in RETRIABLE and not job.payload:
        raise ApiError(400, "the job's input was dropped to make room for other jobs; send the job again")
    try:
        queued = state.jobs.retry(job)
    except QueueFull as error:
        raise _full(error) from error
    if not queued:
        raise ApiError(400, f"the job is {job.state}; only a job that is FAILED or TIMED_OUT can be retried")
    return web.json_response({"id": job.id, "status": job.state})


async def _purge(request: web.Request, state: AppState) -> web.Response:
    return web.json_response({"removed": state.jobs.purge(), "status": "completed"})


async def _health(request: web.Request, state: AppState) -> web.Response:
    workers = state.pool.numbers(state.jobs.busy)
    return web.json_response({"jobs": state.jobs.numbers(), "workers": workers})


def _submit(state: AppState, payload: Mapping[str, Any], **options: Any) -> EndpointJob:
    try:
        return state.jobs.submit(payload, **options)
    except QueueFull as error:
        raise _full(error) from error


def _full(error: QueueFull) -> ApiError:
    hint = "try again later, cancel jobs (/cancel, /purge-queue), or raise --queue-jobs and --queue-bytes"
    return ApiError(429, f"the queue is full: {error}; {hint}", headers={"Retry-After": "10"})


async def _submission(request: web.Request, state: AppState, most: int) -> tuple[dict[str, Any], dict[str, Any]]:
    body = await read_body(request, most)
    if body is None:
        raise ApiError(413, f"the body is larger than {megabytes(most)}; send large media as URLs")
    document = parse_request(body)
    if not isinstance(document, dict) or not isinstance(document.get("input"), dict):
        raise ApiError(400, _no_input(document))
    webhook = document.get("webhook")
    if webhook is not None and not (isinstance(webhook, str) and webhook.startswith(("http://", "https://"))):
        raise ApiError(400, "webhook: not an http or https URL")
    payload = {key: document[key] for key in ("input", "webhook", "s3Config") if document.get(key) is not None}
    return payload, {"policy": _policy(document.get("policy")), "webhook": webhook, "size": len(body)}


def _no_input(document: Any) -> str:
    hint = 'send {"input": {...}}'
    if isinstance(document, str) and document.lstrip()[:1] == "{":
        return f"the body is a JSON string that holds JSON: it was encoded twice; {hint}"
    if not isinstance(document, dict):
        return f'the body has no "input": it is not an object; {hint}'
    if isinstance(document.get("input"), str) and document["input"].lstrip()[:1] == "{":
        return f'"input" is a string that holds JSON, not an object: remove the quotes around it; {hint}'
    if "input" in document:
        return f'"input" is not an object; {hint}'
    return f'the body has no "input"; {hint}'


def _policy(document: Any) -> Mapping[str, float | bool]:
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ApiError(400, "policy: not an object")
    policy: dict[str, float | bool] = {}
    for key, value in document.items():
        if key == "lowPriority" and isinstance(value, bool):
            policy[key] = value
        elif key in _POLICY:
            policy[key] = _milliseconds(value, f"policy.{key}", _POLICY[key])
        else:
            raise ApiError(400, f"policy.{key}: unknown or not valid; known: executionTimeout, ttl, lowPriority")
    return policy


def _milliseconds(value: Any, name: str, bounds: tuple[int, int]) -> float:
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or not bounds[0] <= number <= bounds[1]:
        raise ApiError(400, f"{name}: not a number of milliseconds from {bounds[0]} to {bounds[1]}")
    return number / 1000


class _AccessControl:
    """Checks the API key and limits the rate of calls."""

    def __init__(self) -> None:
        self._calls: defaultdict[str, deque[float]] = defaultdict(deque)

    def protect(self, name: str, verb: Verb) -> Callable[[web.Request], Awaitable[web.Response]]:
        """Return `verb` as a handler that checks the API key and the rate of calls first."""

        async def guarded(request: web.Request) -> web.Response:
            state = request.app[APP_STATE]
            if state.api_key is not None:
                # The platform takes the key with or without the word Bearer.
                key = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
                # Bytes that are not valid text arrive as lone surrogates.
                if not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), state.api_key.encode()):
                    raise ApiError(401, "the API key is missing or wrong; send Authorization: Bearer KEY")
            if state.limits.rate:
                self._count(name, state.limits.rate)
            return await verb(request, state)

        return guarded

    def _count(self, name: str, rate: int) -> None:
        calls, now = self._calls[name], time.monotonic()
        while calls and now - calls[0] >= _WINDOW:
            calls.popleft()
        if len(calls) >= rate:
            # The header has whole seconds; rounded up, or a caller that obeys it would come too early.
            wait = int(_WINDOW - (now - calls[0])) + 1
            raise ApiError(429, f"more than {rate} calls of /{name} in 10 s", headers={"Retry-After": str(wait)})
        calls.append(now)
