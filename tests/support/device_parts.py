"""Parts of a bench of the device that go wrong; tests/bench/test_device.py names them to its worker."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from engine.bench.device.measure import DeviceBench, Rows, Skipped


def fine(bench: DeviceBench) -> Rows:
    """Measure something."""
    yield "sum", {"seconds": bench.seconds(lambda: sum(range(1000)))}


def raises(bench: DeviceBench) -> Rows:
    """Fail after a row."""
    yield "before", {"value": 1}
    raise RuntimeError("a kernel refused\nwith more lines")


def rows_fail(bench: DeviceBench) -> Rows:
    """Fail in one row of two, as a kernel does."""
    yield "bad", bench.attempt(_refuse)
    yield "good", bench.attempt(lambda: {"value": 2})


def _refuse() -> dict[str, object]:
    raise MemoryError("no room")


def infinite(bench: DeviceBench) -> Rows:
    """Report what JSON has no word for."""
    yield "rate", {"value": float("inf")}
    yield "other", {"value": 3}


def impossible(bench: DeviceBench) -> Rows:
    """Need what is not here."""
    yield from ()
    raise Skipped("needs a card of another planet")


def hangs(bench: DeviceBench) -> Rows:
    """Never return from a row, and leave a child behind that does not either."""
    yield "before", {"value": 4, "process": os.getpid()}
    time.sleep(600)


def dies(bench: DeviceBench) -> Rows:
    """Take the process along, as a fault in a driver does."""
    yield "before", {"value": 5}
    os.kill(os.getpid(), signal.SIGKILL)


def slow(bench: DeviceBench) -> Rows:
    """Have more rows than time."""
    for number in range(100):
        time.sleep(0.05)
        yield f"row {number}", {"value": number}


def environment(bench: DeviceBench) -> Rows:
    """Report what of the environment a part sees."""
    yield "network", {name: os.environ.get(name) for name in ("S3_BUCKET", "HF_HUB_OFFLINE")}
    yield "process", {"cwd": str(Path.cwd())}
