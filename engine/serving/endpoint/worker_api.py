"""The other side of an endpoint, which the SDK's worker loop speaks: jobs out, results in, stop signals, heartbeats."""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from engine.serving.endpoint.jobs import Job
from engine.serving.endpoint.web import HOUSE, House, Refused, megabytes, parse, read

_LOG = logging.getLogger(__name__)


def routes(endpoint_id: str) -> list[web.RouteDef]:
    """Return the routes that `environment` tells a worker."""
    root = f"/v2/{endpoint_id}"
    return [
        web.get(f"{root}/job-take/{{worker}}", _guarded(_take), allow_head=False),
        web.get(f"{root}/job-take-batch/{{worker}}", _guarded(_take), allow_head=False),
        # The SDK derives this one from job-take.
        web.get(f"{root}/job-stop/{{worker}}", _guarded(_stops), allow_head=False),
        web.post(f"{root}/job-done/{{worker}}/{{job}}", _guarded(_done)),
        web.post(f"{root}/job-stream/{{worker}}/{{job}}", _guarded(_pieces)),
        web.get(f"{root}/ping/{{worker}}", _guarded(_ping), allow_head=False),
    ]


def environment(url: str, endpoint_id: str, worker: str, token: str) -> dict[str, str]:
    """Return what the platform gives a worker's process; `$ID` and `$RUNPOD_POD_ID` are the SDK's to fill in."""
    root = f"{url}/v2/{endpoint_id}"
    # The SDK adds parameters with "&": there has to be one before.
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


async def _take(request: web.Request, house: House) -> web.Response:
    worker = request.match_info["worker"]
    if house.crew.asked(worker) is None:
        return _nothing()
    if request.query.get("job_in_progress") == "0":
        house.jobs.idle(worker)
    batch = "/job-take-batch/" in request.path
    count = max(1, int(request.query.get("batch_size", "1"))) if batch else 1
    given: list[Job] = []

    def ready() -> bool:
        if house.crew.asked(worker) is None:
            return True
        given.extend(house.jobs.take(worker, count))
        return bool(given)

    await house.jobs.bell.until(ready, house.limits.poll)
    if not given:
        return _nothing()
    told = [{"id": job.id, **job.given} for job in given]
    return web.json_response(told if batch else told[0])


async def _stops(request: web.Request, house: House) -> web.Response:
    worker = request.match_info["worker"]
    ids: list[str] = []

    def ready() -> bool:
        ids.extend(house.jobs.stop_signals(worker))
        known = house.crew.workers.get(worker)
        return bool(ids) or known is None or known.retired

    await house.jobs.bell.until(ready, house.limits.poll)
    return web.json_response({"jobsToStop": ids}) if ids else _nothing()


async def _done(request: web.Request, house: House) -> web.Response:
    known = house.jobs.find(request.match_info["job"])
    most = house.limits.sync_bytes if known is not None and known.sync else house.limits.run_bytes
    body = await read(request, most)
    job = _running(house, request)
    if body is None:
        if job is not None:
            text = f"the result is larger than {megabytes(most)}, and the platform would have lost it; use S3"
            house.jobs.fail(job, text)
        raise Refused(413, "too large")
    result = parse(body)
    if not isinstance(result, dict):
        raise Refused(400, "not an object")
    if job is None:
        _too_late(known, result)
    elif result.get("status") == "IN_PROGRESS":
        house.jobs.progress(job, result.get("output"))
    else:
        house.jobs.finish(job, result)
    if result.get("stopPod"):
        house.crew.retire(request.match_info["worker"])
        house.jobs.bell.ring()
    return web.json_response({})


async def _pieces(request: web.Request, house: House) -> web.Response:
    body = await read(request, house.limits.sync_bytes)
    if body is None:
        raise Refused(413, "too large")
    result = parse(body)
    job = _running(house, request)
    if job is not None and isinstance(result, dict) and "output" in result:
        house.jobs.stream(job, _split(result["output"], house.limits.chunk_bytes))
    return web.json_response({})


async def _ping(request: web.Request, house: House) -> web.Response:
    worker = house.crew.workers.get(request.match_info["worker"])
    if worker is not None and request.query.get("status") == "unhealthy":
        worker.complaint = f"{request.query.get('check', '')}: {request.query.get('reason', '')}"
    return web.json_response({})


def _running(house: House, request: web.Request) -> Job | None:
    # Of a job that was stopped, or given to another worker since, nothing counts that comes from the old one.
    job = house.jobs.find(request.match_info["job"])
    mine = job is not None and job.state == "IN_PROGRESS" and job.worker == request.match_info["worker"]
    return job if mine else None


def _too_late(job: Job | None, result: dict[str, Any]) -> None:
    if job is not None and job.state == "COMPLETED" and result.get("status") == "IN_PROGRESS":
        _LOG.warning(
            "job %s: progress came after the result and is dropped; the platform may take it for the newer state",
            job.id,
        )


def _split(output: Any, most: int) -> list[Any]:
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    if len(text.encode()) <= most:
        return [output]
    # Characters have at most four bytes.
    return [text[start : start + most // 4] for start in range(0, len(text), most // 4)]


def _nothing() -> web.Response:
    return web.Response(status=204)


def _guarded(
    handler: Callable[[web.Request, House], Awaitable[web.Response]],
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def guarded(request: web.Request) -> web.Response:
        house = request.app[HOUSE]
        if not hmac.compare_digest(request.query.get("token", "").encode(), house.token.encode()):
            raise Refused(401, "only this endpoint's own workers come in here")
        return await handler(request, house)

    return guarded
