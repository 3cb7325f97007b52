"""Retry requests that a store refuses temporarily."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from itertools import count
from typing import TypeVar

from engine.cancel import apart, pause
from engine.data.cancel import CancelToken
from engine.net.s3 import Trouble

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Maximum seconds between two attempts.
_LONGEST = 30.0
#: Seconds that a cancelled upload has to end while bytes still move.
GRACE = 0.5


def patiently(
    call: Callable[[], T | Trouble], *, attempts: int, backoff: float, cancel: CancelToken | None
) -> T | Trouble:
    """Call until it succeeds, fails permanently, or all attempts are used; return the last result.

    Between two attempts it waits a random time of up to `backoff` seconds, which doubles with each attempt. Raises
    Cancelled within a second after `cancel` is set; a call that is running then continues in its own thread.
    """
    for attempt in count(1):
        answer = apart(call, cancel, "keep", grace=GRACE)
        if not isinstance(answer, Trouble) or not answer.passing or attempt >= attempts:
            break
        # Full jitter: jobs that failed at the same time do not retry at the same time.
        wait = random.uniform(0, min(_LONGEST, backoff * 2 ** (attempt - 1)))  # noqa: S311 - no secret
        logger.warning("attempt %d of %d: %s; next attempt in %.1f s", attempt, attempts, answer.what, wait)
        pause(wait, cancel, "keep")
    return answer
