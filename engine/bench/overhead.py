"""How many seconds the engine itself adds to a job, without model and media, as JSON."""

from __future__ import annotations

import statistics
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.bench.platform import Platform, working
from engine.client import file
from engine.errors import EngineError, RequestError

#: Most seconds that the engine may add to a job.
ALLOWED = 0.05
#: Most seconds for one job, for the first one including the start of the worker.
_PATIENCE = 900.0
_MEDIA = {"reference_image": "one.png", "audio_1": "one.flac"}


def run(jobs: int = 8) -> dict[str, Any]:
    """Run twice `jobs` jobs of five frames with `multitalk runpod model=tiny`, and return their `overhead`.

    `same` uses the same settings each time, `other` different ones, whose config is not cached from an earlier job.
    Figures are seconds: `overhead` from the answers (checking, composing, planning, answering), and `read`, the stage
    that opens, checks and decodes the media. Measure on an idle machine. Raises RequestError, and EngineError if a job
    fails.
    """
    if jobs < 2:
        raise RequestError(f"{jobs} jobs", field="bench overhead", hint="at least 2: the first one does not count")
    platform = Platform()
    rows: dict[str, list[dict[str, float]]] = {}
    try:
        with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
            log = Path(folder) / "log"
            with working(platform, ["model=tiny"], log=log) as process:
                for kind in ("same", "other"):
                    rows[kind] = [
                        _job(platform, f"{kind}-{number}", 2.0 + (number / 8 if kind == "other" else 0), log)
                        for number in range(jobs + 1)
                    ][1:]
                process.terminate()
                process.wait(_PATIENCE)
    finally:
        platform.close()
    figures = {kind: {part: _middle(part, table) for part in ("overhead", "read")} for kind, table in rows.items()}
    return {
        "bench": "overhead",
        "model": "tiny",
        "jobs": jobs,
        **figures,
        "allowed": ALLOWED,
        "holds": all(parts["overhead"]["median"] <= ALLOWED for parts in figures.values()),
    }


def _job(platform: Platform, name: str, scale: float, log: Path) -> dict[str, float]:
    media = {field: file(str(files("engine") / "examples" / example)) for field, example in _MEDIA.items()}
    settings = {"prompt": "a person talks", "num_frames": 5, "fps": 25, "sampling_steps": 2, "guidance_scale": scale}
    platform.send(name, {**media, **settings})
    answer = platform.result(name, _PATIENCE)
    output: dict[str, Any] = answer.get("output") or {}
    if "overhead" not in output:
        raise EngineError(f"job {name}: {answer}", field="bench overhead", hint=log.read_text("utf-8")[-2000:])
    return {"overhead": output["overhead"], "read": output["timings"]["read"]}


def _middle(part: str, rows: list[dict[str, float]]) -> dict[str, float]:
    values = [row[part] for row in rows]
    return {"least": min(values), "median": round(statistics.median(values), 4), "most": max(values)}
