"""RunPod's SDK: everything that is asked of it or held back from it, in one place."""

from __future__ import annotations

import asyncio
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
from engine.serving.worker.logs import Lines
from engine.serving.worker.progress_sender import Post
from engine.serving.worker.shutdown import Stop
from engine.serving.worker.warm_engine import Keeper

_LOG = logging.getLogger(__name__)

#: Seconds for one sign of life; a result waits for it.
_PATIENCE = 5.0
#: What the SDK takes for the address of progress where the platform gave none.
_NOWHERE = "JOB_DONE_URL"


def require() -> None:
    """Raise MissingExtra where the SDK is not installed."""
    if find_spec("runpod") is None:
        raise MissingExtra("entrypoint=runpod", "runpod", "runpod")


def poster(job: Mapping[str, Any]) -> Post | None:
    """Return what sends a job's progress before it returns; None off the platform, where the SDK posts to a word."""
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules import rp_http

    if rp_http.JOB_DONE_URL_TEMPLATE == _NOWHERE:
        return None

    def post(payload: Mapping[str, Any]) -> None:
        async def send() -> None:
            async with AsyncClientSession() as session:
                await rp_http.send_result(
                    session, {"status": "IN_PROGRESS", "output": dict(payload)}, {"id": job["id"]}
                )

        # Not the SDK's progress_update: its thread for each call knows no order and may come after the result.
        asyncio.run(asyncio.wait_for(send(), _PATIENCE))

    return post


def quiet(lines: Lines) -> None:
    """Hold the SDK's own log at INFO, since it logs answers at DEBUG, and take out of it what ours leaves out."""
    from runpod.serverless.modules.rp_logger import RunPodLogger

    logger = RunPodLogger()
    if logger.level in ("DEBUG", "TRACE"):
        logger.level = "INFO"
    if "log" in vars(logger):
        return
    write = logger.log

    def log(message: Any, message_level: str = "INFO", job_id: str | None = None) -> None:
        write(lines.clean(str(message)), message_level, job_id)

    # On the one instance that the SDK has.
    logger.log = log


def serve(
    handler: Handler,
    keeper: Keeper,
    checks: Sequence[Check],
    *,
    grace: float,
    lines: Lines,
    mirror: Any,
    test_input: str | None = None,
) -> int:
    """Take jobs from the platform until told to end; return the process' exit status.

    Raises ConfigError for a `test_input` that is no JSON.
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

    stop = Stop(handler.stopped, grace, busy=lambda: JobsProgress().get_job_count() > 0)

    def one_at_a_time(_: int) -> int:
        # The SDK calls it in its loop, before each job that it takes: the one place to be in there.
        stop.arm()
        heartbeat.follow(mirror)
        quiet(lines)
        return 1

    for check in checks:
        serverless.register_fitness_check(check)
    if test_input is not None:
        # The SDK reads its flags from here, and has another way for none of them.
        sys.argv += ["--test_input", test_input]
    try:
        serverless.start({"handler": handler.handle, "concurrency_modifier": one_at_a_time})
    except asyncio.CancelledError:
        if not stop.asked:
            raise
    finally:
        heartbeat.stop()
    if keeper.warming:
        # Nothing is begun that could be left half done, and reading weights can take minutes.
        _LOG.info("ended while the weights were being loaded")
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)
    return 0
