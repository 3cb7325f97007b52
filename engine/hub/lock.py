"""A lock on a model's folder: one process at a time, on all machines that share the volume."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import Cancelled, SourceError
from engine.hub.record import PRIVATE

#: Seconds without a heartbeat after which a lock is taken over if its owner is on another machine.
LEASE = 60.0


@contextmanager
def locked(
    folder: Path, *, lease: float = LEASE, say: Callable[[str], None] = lambda _: None
) -> Iterator[threading.Event]:
    """Lock the folder, waiting for its present owner; the event that it yields is set if the lock is lost.

    The lock is a lease: a file that its owner touches regularly, because on many network volumes the kernel's locks
    work on one machine only. The lease of a dead process of this machine is taken over at once, another machine's
    after `lease` seconds without a touch. Raises SourceError instead of a Cancelled that a lost lock caused.
    """
    from filelock import SoftFileLease, Timeout

    (folder / PRIVATE).mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    lock = SoftFileLease(folder / PRIVATE / "lock", lease_duration=lease, on_compromise=lambda _: stop.set())
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is using {folder}; waiting for it")
        lock.acquire(poll_interval=min(1.0, lease / 10))
    try:
        yield stop
    except Cancelled:
        if lock.compromise is None:
            raise
        raise SourceError(
            f"the lock of {folder} was lost ({lock.compromise.reason})",
            field="--model-path",
            hint="start again; check whether the volume is slow or hangs",
        ) from None
    finally:
        lock.release()
