"""States of delivered videos, removed a little later: until then the answer of the job may still get lost."""

from __future__ import annotations

import atexit
import threading
from contextlib import suppress
from pathlib import Path

from engine.files.states import StateFolder

#: Seconds until states are removed: if a worker dies before its answer has arrived, the job is sent again.
SECONDS = 10.0
#: Seconds for which the end of the process waits for a disk that does not answer.
_GRACE = 2.0
_waiting: dict[Path, StateFolder] = {}


def remove_later(states: StateFolder) -> None:
    """Remove states some seconds from now, or when this process ends."""
    _waiting[states.path] = states
    timer = threading.Timer(SECONDS, _remove, [states])
    timer.daemon = True
    timer.start()


def keep_longer(states: StateFolder) -> None:
    """Do not remove states that wait for it: another attempt of the same job begins."""
    _waiting.pop(states.path, None)


def _remove(states: StateFolder) -> None:
    if _waiting.get(states.path) is states:
        keep_longer(states)
        with suppress(OSError):
            states.remove()


@atexit.register
def remove_now() -> None:
    """Remove all states that wait for it."""
    threads = [threading.Thread(target=_remove, args=[states], daemon=True) for states in [*_waiting.values()]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_GRACE)
