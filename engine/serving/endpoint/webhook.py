"""Calls a job's webhook with the job's final status, and again if the call fails."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from engine.serving.endpoint.limits import EndpointLimits

_LOG = logging.getLogger(__name__)
_TIMEOUT = aiohttp.ClientTimeout(total=30)


async def deliver(session: aiohttp.ClientSession, url: str, report: dict[str, Any], limits: EndpointLimits) -> bool:
    """POST the answer of /status until the response is 200, with at most `webhook_retries` retries; return success."""
    for attempt in range(limits.webhook_retries + 1):
        if attempt:
            await asyncio.sleep(limits.webhook_delay)
        try:
            async with session.post(url, json=report, timeout=_TIMEOUT) as response:
                if response.status == 200:
                    return True
                problem = f"status {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            problem = type(error).__name__
        _LOG.warning("job %s: the webhook answered %s instead of 200", report["id"], problem)
    return False
