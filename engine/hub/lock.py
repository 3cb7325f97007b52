"""One process at a time in a model's folder, on all machines that share the volume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import Cancelled, SourceError
from engine.hub.record import PRIVATE

#: Seconds without a sign of life after which a lock is taken over, where its owner cannot be looked up.
LEASE = 60.0


@contextmanager
def locked(
    folder: Path, *, lease: float = LEASE, say: Callable[[str], None] = lambda _: None
) -> Iterator[threading.Event]:
    """Hold the folder, waiting for whoever holds it; the event is set when the hold is lost.

    A lease: a file that its owner touches, since on many network volumes the kernel's locks hold on one machine alone.
    That of a process that died here is taken over at once, another machine's after `lease` seconds without a touch.
    Raises SourceError in place of a Cancelled that comes of a lost hold.
    """
    from filelock import SoftFileLease, Timeout

    (folder / PRIVATE).mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    lock = SoftFileLease(folder / PRIVATE / "lock", lease_duration=lease, on_compromise=lambda _: stop.set())
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is at work in {folder}; waiting for it")
        lock.acquire(poll_interval=min(1.0, lease / 10))
    try:
        yield stop
    except Cancelled:
        if lock.compromise is None:
            raise
        raise SourceError(
            f"the lock of {folder} was lost ({lock.compromise.reason})",
            field="--model-path",
            hint="start again; does the volume hang at times?",
        ) from None
    finally:
        lock.release()
