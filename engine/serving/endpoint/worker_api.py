"""The API for workers, as the SDK's worker loop calls it: take jobs, post results, stop signals, heartbeats."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from engine.serving.endpoint.jobs import EndpointJob
from engine.serving.endpoint.web import APP_STATE, ApiError, AppState, megabytes, parse_json, read_body

_LOG = logging.getLogger(__name__)


def routes(endpoint_id: str) -> list[web.RouteDef]:
    """Return the routes whose addresses `environment` gives to a worker."""
    root = f"/v2/{endpoint_id}"
    return [
        web.get(f"{root}/job-take/{{worker}}", _authorized(_take), allow_head=False),
        web.get(f"{root}/job-take-batch/{{worker}}", _authorized(_take), allow_head=False),
        # The SDK derives this one from job-take.
        web.get(f"{root}/job-stop/{{worker}}", _authorized(_stops), allow_head=False),
        web.post(f"{root}/job-done/{{worker}}/{{job}}", _authorized(_done)),
        web.post(f"{root}/job-stream/{{worker}}/{{job}}", _authorized(_stream)),
        web.get(f"{root}/ping/{{worker}}", _authorized(_ping), allow_head=False),
    ]


def environment(url: str, endpoint_id: str, worker: str, token: str) -> dict[str, str]:
    """Return the variables that the platform sets for a worker; the SDK replaces `$ID` and `$RUNPOD_POD_ID`."""
    root = f"{url}/v2/{endpoint_id}"
    # The SDK appends parameters with "&", so there must be a first one.
    key = f"?token={token}"
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{root}/job-take/$ID{key}",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{root}/job-done/$RUNPOD_POD_ID/$ID{key}",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{root}/job-stream/$RUNPOD_POD_ID/$ID{key}",
        "RUNPOD_WEBHOOK_PING": f"{root}/ping/$RUNPOD_POD_ID{key}",
        "RUNPOD_PING_INTERVAL": "10000",
        "RUNPOD_AI_API_KEY": "local",
        "RUNPOD_POD_ID": worker,
        "RUNPOD_POD_HOSTNAME": f"{worker}.local",
        "RUNPOD_ENDPOINT_ID": endpoint_id,
    }


async def _take(request: web.Request, state: AppState) -> web.Response:
    worker = request.match_info["worker"]
    if state.pool.note_poll(worker) is None:
        return _no_content()
    if request.query.get("job_in_progress") == "0":
        state.jobs.worker_idle(worker)
    batch = "/job-take-batch/" in request.path
    count = max(1, int(request.query.get("batch_size", "1"))) if batch else 1
    taken: list[EndpointJob] = []

    def ready() -> bool:
        if state.pool.note_poll(worker) is None:
            return True
        taken.extend(state.jobs.take(worker, count))
        return bool(taken)

    await state.jobs.changed.wait_for(ready, state.limits.poll)
    if not taken:
        return _no_content()
    payloads = [{"id": job.id, **job.payload} for job in taken]
    return web.json_response(payloads if batch else payloads[0])


async def _stops(request: web.Request, state: AppState) -> web.Response:
    worker = request.match_info["worker"]
    ids: list[str] = []

    def ready() -> bool:
        ids.extend(state.jobs.stop_signals(worker))
        process = state.pool.workers.get(worker)
        return bool(ids) or process is None or process.retired

    await state.jobs.changed.wait_for(ready, state.limits.poll)
    return web.json_response({"jobsToStop": ids}) if ids else _no_content()


async def _done(request: web.Request, state: AppState) -> web.Response:
    job = state.jobs.find(request.match_info["job"])
    most = state.limits.sync_bytes if job is not None and job.sync else state.limits.run_bytes
    body = await read_body(request, most)
    job = _running(state, request)
    if body is None:
        if job is not None:
            text = f"the result is larger than {megabytes(most)}; the platform would have lost it; use S3"
            state.jobs.fail(job, text)
        raise ApiError(413, "too large")
    result = parse_json(body)
    if not isinstance(result, dict):
        raise ApiError(400, "not an object")
    if job is None:
        _warn_if_late(job, result)
    elif result.get("status") == "IN_PROGRESS":
        state.jobs.progress(job, result.get("output"))
    else:
        state.jobs.finish(job, result)
    if result.get("stopPod"):
        state.pool.retire(request.match_info["worker"])
        state.jobs.changed.notify_all()
    return web.json_response({})


async def _stream(request: web.Request, state: AppState) -> web.Response:
    body = await read_body(request, state.limits.sync_bytes)
    if body is None:
        raise ApiError(413, "too large")
    result = parse_json(body)
    job = _running(state, request)
    if job is not None and isinstance(result, dict) and "output" in result:
        state.jobs.stream(job, _split(result["output"], state.limits.chunk_bytes))
    return web.json_response({})


async def _ping(request: web.Request, state: AppState) -> web.Response:
    worker = state.pool.workers.get(request.match_info["worker"])
    if worker is not None and request.query.get("status") == "unhealthy":
        worker.problem = f"{request.query.get('check', '')}: {request.query.get('reason', '')}"
    return web.json_response({})


def _running(state: AppState, request: web.Request) -> EndpointJob | None:
    # If a job was stopped or handed to another worker, messages of the previous worker are ignored.
    job = state.jobs.find(request.match_info["job"])
    mine = job is not None and job.state == "IN_PROGRESS" and job.worker == request.match_info["worker"]
    return job if mine else None


def _warn_if_late(job: EndpointJob | None, result: dict[str, Any]) -> None:
    if job is not None and job.state == "COMPLETED" and result.get("status") == "IN_PROGRESS":
        _LOG.warning(
            "job %s: a progress update arrived after the result and is dropped; the platform may show it as the state",
            job.id,
        )


def _split(output: Any, most: int) -> list[Any]:
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    if len(text.encode()) <= most:
        return [output]
    # Characters have at most four bytes.
    return [text[start : start + most // 4] for start in range(0, len(text), most // 4)]


def _no_content() -> web.Response:
    return web.Response(status=204)


def _authorized(
    handler: Callable[[web.Request, AppState], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def authorized(request: web.Request) -> web.Response:
        state = request.app[APP_STATE]
        if not hmac.compare_digest(request.query.get("token", "").encode(), state.token.encode()):
            raise ApiError(401, "only this endpoint's own workers may call this")
        return await handler(request, state)

    return authorized
