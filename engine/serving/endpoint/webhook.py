"""Tells a job's webhook how the job ended, and again if it did not listen."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import aiohttp

from engine.serving.endpoint.limits import Limits

_LOG = logging.getLogger(__name__)
_TIMEOUT = aiohttp.ClientTimeout(total=30)


async def deliver(session: aiohttp.ClientSession, url: str, told: dict[str, Any], limits: Limits) -> bool:
    """POST what /status says until 200 comes back, at most `webhook_retries` more times. Return whether it came."""
    for attempt in range(limits.webhook_retries + 1):
        if attempt:
            await asyncio.sleep(limits.webhook_delay)
        try:
            async with session.post(url, json=told, timeout=_TIMEOUT) as response:
                if response.status == 200:
                    return True
                problem = f"status {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            problem = type(error).__name__
        _LOG.warning("job %s: the webhook did not answer 200 but %s", told["id"], problem)
    return False
