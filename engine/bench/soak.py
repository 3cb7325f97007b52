"""Does a worker stay stable over many jobs? Its memory and the files it leaves on disk, as JSON."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from typing import Any

from engine.bench.platform import Platform, working
from engine.errors import EngineError, RequestError
from engine.runtime.memory import status

#: Jobs after which caches and allocators are warm.
WARM = 20
#: MiB of resident memory that each further job may add.
ALLOWED = 0.1
#: Most seconds for one job, for the first one including the start of the worker.
_PATIENCE = 900.0

Row = dict[str, Any]


def run(jobs: int = 200) -> dict[str, Any]:
    """Run `jobs` self-tests one after the other with `multitalk runpod model=tiny`, and return figures; Linux only.

    `slope_mib_per_job` is the slope of a line through the worker's resident memory after each job except the first 20.
    `left` lists the files in its temporary folder after it has ended. Raises RequestError, and EngineError if a job
    fails.
    """
    if jobs < WARM + 2:
        raise RequestError(
            f"{jobs} jobs", field="bench soak", hint=f"at least {WARM + 2}: the first {WARM} do not count"
        )
    platform = Platform()
    try:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            temporary, log = Path(folder) / "tmp", Path(folder) / "log"
            temporary.mkdir()
            with working(platform, ["model=tiny"], log=log, TMPDIR=str(temporary)) as process:
                rows = [_job(platform, number, process.pid, log) for number in range(1, jobs + 1)]
                process.terminate()
                process.wait(_PATIENCE)
            leftovers = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*"))
    finally:
        platform.close()
    return _report(rows, leftovers, process.returncode)


def _report(rows: Sequence[Row], leftovers: Sequence[str], status: int | None) -> dict[str, Any]:
    warmed = rows[WARM:]
    slope = linear_regression(range(len(warmed)), [row["rss_mib"] for row in warmed]).slope
    return {
        "bench": "soak",
        "model": "tiny",
        "jobs": len(rows),
        "seconds": {"first": rows[0]["seconds"], **_range("seconds", warmed)},
        "rss_mib": {"first": rows[0]["rss_mib"], "warm": warmed[0]["rss_mib"], "last": rows[-1]["rss_mib"]},
        "descriptors": _range("descriptors", warmed),
        "threads": _range("threads", warmed),
        "sha256": sorted({row["sha256"] for row in rows}),
        "slope_mib_per_job": round(slope, 4),
        "allowed_mib_per_job": ALLOWED,
        "left": list(leftovers),
        "status": status,
        "rss_mib_by_job": [row["rss_mib"] for row in rows],
        "holds": slope <= ALLOWED and not leftovers and status == 0,
    }


def _job(platform: Platform, number: int, worker: int, log: Path) -> Row:
    began = time.monotonic()
    platform.send(f"soak-{number}", {"action": "selftest"})
    answer = platform.result(f"soak-{number}", _PATIENCE)
    output = answer.get("output") or {}
    if output.get("ok") is not True:
        raise EngineError(f"job {number}: {answer}", field="bench soak", hint=log.read_text("utf-8")[-2000:])
    return {
        "seconds": round(time.monotonic() - began, 2),
        "sha256": output["sha256"],
        "rss_mib": round(status("VmRSS", worker) / 1024, 2),
        "threads": status("Threads", worker),
        "descriptors": len(list(Path(f"/proc/{worker}/fd").iterdir())),
    }


def _range(key: str, rows: Sequence[Row]) -> dict[str, Any]:
    values = [row[key] for row in rows]
    return {"least": min(values), "most": max(values)}
