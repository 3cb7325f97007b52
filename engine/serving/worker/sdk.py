"""All use of RunPod's SDK, in one place."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from engine.errors import ConfigError, MissingExtra
from engine.serving.jobs.document_bounds import parse_json, reason
from engine.serving.worker import heartbeat
from engine.serving.worker.fitness import Check
from engine.serving.worker.handler import Handler
from engine.serving.worker.logs import LogContext
from engine.serving.worker.progress_sender import Post
from engine.serving.worker.shutdown import GracefulShutdown
from engine.serving.worker.warm_engine import WarmEngine

_LOG = logging.getLogger(__name__)

#: Seconds for one progress update; a result waits for it.
_TIMEOUT = 5.0
#: The SDK's address for progress updates if the platform set none.
_NOWHERE = "JOB_DONE_URL"
_NO_STREAM = "JOB_STREAM_URL"


def require() -> None:
    """Raise MissingExtra if the SDK is not installed."""
    if find_spec("runpod") is None:
        raise MissingExtra("entrypoint=runpod", "runpod", "runpod")


def poster(job: Mapping[str, Any]) -> Post | None:
    """Return the function that sends a job's progress updates; None outside the platform, where there is no address."""
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules import rp_http

    if rp_http.JOB_DONE_URL_TEMPLATE == _NOWHERE:
        return None

    async def send(payload: Mapping[str, Any]) -> None:
        async with AsyncClientSession() as session:
            await rp_http.send_result(session, {"status": "IN_PROGRESS", "output": dict(payload)}, {"id": job["id"]})

    # Not the SDK's progress_update: it starts a thread per call, so updates may arrive after the result.
    return lambda payload: asyncio.run(asyncio.wait_for(send(payload), _TIMEOUT))


def streamer(job: Mapping[str, Any]) -> Post | None:
    """Return the function that sends a piece of a job's stream; None outside the platform.

    The SDK sends such pieces only for handlers that are generators, which it cannot cancel.
    """
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules import rp_http

    if rp_http.JOB_STREAM_URL_TEMPLATE == _NO_STREAM:
        return None

    async def send(payload: Mapping[str, Any]) -> None:
        async with AsyncClientSession() as session:
            await rp_http.stream_result(session, {"output": dict(payload)}, {"id": job["id"]})

    return lambda payload: asyncio.run(asyncio.wait_for(send(payload), _TIMEOUT))


def redact_sdk_log(context: LogContext) -> None:
    """Keep the SDK's own log at INFO, because it logs answers at DEBUG, and redact it like ours."""
    from runpod.serverless.modules.rp_logger import RunPodLogger

    logger = RunPodLogger()
    if logger.level in ("DEBUG", "TRACE"):
        logger.level = "INFO"
    if "log" in vars(logger):
        return
    write = logger.log

    def log(message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
        write(context.redact_text(str(message)), message_level, job_id)

    # On the only instance of the SDK's logger.
    logger.log = log


def serve(
    handler: Handler,
    warm_engine: WarmEngine,
    checks: Sequence[Check],
    *,
    grace: float,
    context: LogContext,
    mirror: Any,
    test_input: str | None = None,
) -> int:
    """Take jobs from the platform until the worker is stopped; return the exit status of the process.

    With `test_input` do this one job, print its answer as JSON, and return 3 if it failed. Raises ConfigError for a
    `test_input` that is not JSON.
    """
    if test_input is not None:
        try:
            parse_json(test_input.encode())
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"this is not JSON: {reason(error)}", field="entrypoint.test_input", hint='give {"input": {...}}'
            ) from error
    from runpod import serverless
    from runpod.serverless.modules.worker_state import JobsProgress

    shutdown = GracefulShutdown(handler.stopped, grace, busy=lambda: JobsProgress().get_job_count() > 0)

    def one_at_a_time(_: int) -> int:
        # The SDK calls this in its loop before it takes a job; there is no other hook inside its loop.
        shutdown.arm()
        heartbeat.follow(mirror)
        redact_sdk_log(context)
        return 1

    failed = False

    async def answer_on_stdout(job: Mapping[str, Any]) -> Any:
        nonlocal failed
        answer = await handler.handle(job)
        failed = "error" in answer
        print(json.dumps(answer), flush=True)
        return answer

    for check in checks:
        serverless.register_fitness_check(check)
    if test_input is not None:
        # The SDK reads its flags only from sys.argv.
        sys.argv += ["--test_input", test_input]
    try:
        handle = handler.handle if test_input is None else answer_on_stdout
        serverless.start({"handler": handle, "concurrency_modifier": one_at_a_time})
    except asyncio.CancelledError:
        if not shutdown.requested:
            raise
    except SystemExit:
        # The SDK's end of a test input, with a status of its own.
        if test_input is None:
            raise
    finally:
        heartbeat.stop()
    status = 3 if failed else 0
    if warm_engine.warming:
        # No job has begun, and reading the weights can take minutes, so the process ends at once.
        _LOG.info("ended while the weights were being loaded")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)
    return status
