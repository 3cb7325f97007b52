"""How long a worker takes to be ready, compared with plain imports and reading its weights, as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.bench.platform import Platform, working
from engine.client import file
from engine.errors import EngineError

#: Seconds between two checks whether the worker is ready: a tenth of the reported precision.
_LOOK = 0.1
_PATIENCE = 900.0

#: Imports of programs that also read the weights in a new process, without the engine.
_IMPORTS = {
    #: Imports that every program with these networks needs.
    "bare": "import torch, diffusers, transformers",
    #: Imports that this worker needs in addition: RunPod's SDK, video, sound, configs.
    "libraries": "import runpod.serverless, av, hydra, peft, soxr, torch, diffusers, transformers",
}
_PROGRAM = """
import json, sys, time
from pathlib import Path
began = time.monotonic()
{imports}
from diffusers import AutoencoderKLWan
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model
imported = time.monotonic()
from safetensors.torch import load_file
for path in sorted(Path(sys.argv[1]).rglob("*.safetensors")):
    {{name: tensor.clone() for name, tensor in load_file(path).items()}}
parts = {{"imports": imported - began, "weights": time.monotonic() - imported, "cpu": time.process_time()}}
print(json.dumps(parts))
"""
_MEDIA = {"reference_image": "one.png", "audio_1": "one.flac"}
_JOB = {"prompt": "a person talks", "num_frames": 5, "fps": 25, "turbo": True}


def run(rounds: int = 3) -> dict[str, Any]:
    """Start the worker with the tiny model and two programs without it in turn, `rounds` times; medians count.

    A worker is ready when it has its weights and asks for jobs: then its answer to `health` says so. All times start
    with the process. `ratio` is relative to the plain program: torch, diffusers, transformers and reading the weights.
    `cpu` is processor time, which other load on the machine changes little; Linux only.
    """
    rows: dict[str, list[dict[str, float]]] = {"bare": [], "libraries": [], "worker": []}
    # In turn, so that a machine that gets slower affects all; the first run fills the page cache.
    _program("libraries")
    for _ in range(max(1, rounds)):
        rows["bare"].append(_program("bare"))
        rows["libraries"].append(_program("libraries"))
        rows["worker"].append(_worker())
    middle = {name: sorted(runs, key=_whole)[len(runs) // 2] for name, runs in rows.items()}
    ready = middle["worker"]["ready"]
    return {
        "bench": "start",
        "model": "tiny",
        "rounds": len(rows["worker"]),
        **{f"{name}_seconds": parts for name, parts in middle.items()},
        "ratio": ready / middle["bare"]["process"],
        "cpu_ratio": middle["worker"]["cpu"] / middle["bare"]["cpu"],
        "ratio_to_libraries": ready / middle["libraries"]["process"],
        "allowed_ratio": 1.5,
    }


def _whole(parts: dict[str, float]) -> float:
    return parts["ready"] if "ready" in parts else parts["process"]


def _program(name: str) -> dict[str, float]:
    began = time.monotonic()
    code = _PROGRAM.format(imports=_IMPORTS[name])
    weights = str(files("engine") / "weights" / "tiny")
    completed = subprocess.run([sys.executable, "-c", code, weights], check=True, capture_output=True, text=True)
    parts: dict[str, float] = json.loads(completed.stdout.splitlines()[-1])
    return parts | {"process": time.monotonic() - began}


def _worker() -> dict[str, float]:
    platform = Platform()
    try:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            began = time.monotonic()
            with working(platform, ["model=tiny"], log=log) as process:
                if not platform.first_poll.wait(_PATIENCE):
                    raise EngineError("the worker asked for no job", field="bench start", hint=log.read_text("utf-8"))
                first_question = time.monotonic()
                loaded, cpu = _loaded(platform), _cpu(process.pid)
                parts = _cold_start(platform)
                return {
                    "first_ping": platform.pings[0][0] - began,
                    "asked": first_question - began,
                    "ready": loaded - began,
                    "imports": parts["imports"],
                    "weights": parts["weights"],
                    "cpu": cpu,
                }
    finally:
        platform.close()


def _loaded(platform: Platform) -> float:
    deadline = time.monotonic() + _PATIENCE
    number = 0
    while time.monotonic() < deadline:
        number += 1
        platform.send(f"health-{number}", {"action": "health"})
        answer = platform.result(f"health-{number}", _PATIENCE)["output"]
        if answer["status"] == "ready":
            return time.monotonic()
        if answer["status"] == "unhealthy":
            raise EngineError(str(answer["problem"]), field="bench start")
        time.sleep(_LOOK)
    raise EngineError("the worker was not ready in time", field="bench start")


def _cpu(process: int) -> float:
    """Return the seconds of processor time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cold_start(platform: Platform) -> dict[str, float]:
    """Return the load times from the first video's answer."""
    examples = files("engine") / "examples"
    media = {field: file(str(examples / name)) for field, name in _MEDIA.items()}
    platform.send("first", {**_JOB, **media})
    answer = platform.result("first", _PATIENCE)
    if "error" in answer:
        raise EngineError(str(answer["error"]), field="bench start")
    parts: dict[str, float] = answer["output"]["cold_start"]
    return parts
