"""Try again what a store refuses in passing."""

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

#: Seconds; the longest wait between two tries.
_LONGEST = 30.0
#: Seconds in which an upload may end that is withdrawn and still moves.
GRACE = 0.5


def patiently(
    call: Callable[[], T | Trouble], *, attempts: int, backoff: float, cancel: CancelToken | None
) -> T | Trouble:
    """Call until it succeeds, the trouble is one that stays, or all attempts are used up.

    Between two lies a random time of up to `backoff` seconds, doubled with each. Raises Cancelled within a second once
    `cancel` is set; a call that runs then is left to itself.
    """
    for attempt in count(1):
        answer = apart(call, cancel, "keep", grace=GRACE)
        if not isinstance(answer, Trouble) or not answer.passing or attempt >= attempts:
            break
        # Full jitter: jobs that were cut off together do not come back together.
        wait = random.uniform(0, min(_LONGEST, backoff * 2 ** (attempt - 1)))  # noqa: S311 - no secret
        logger.warning("attempt %d of %d: %s; again in %.1f s", attempt, attempts, answer.what, wait)
        pause(wait, cancel, "keep")
    return answer
