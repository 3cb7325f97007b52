"""How long a worker takes to be ready, against its bare imports and the reading of its weights, as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.bench.platform import Platform, working
from engine.errors import EngineError

#: Seconds between two questions whether the worker is ready: a tenth of what is told.
_LOOK = 0.1
_PATIENCE = 900.0

#: What any worker pays that uses these libraries and these weights, in a fresh process: nothing of ours is in it.
_BARE = """
import json, sys, time
from pathlib import Path
began = time.monotonic()
import runpod.serverless
import av, hydra, peft, skimage.color, soxr, torch, diffusers, transformers
from diffusers import AutoencoderKLWan
from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel, Wav2Vec2Model
imported = time.monotonic()
from safetensors.torch import load_file
for path in sorted(Path(sys.argv[1]).rglob("*.safetensors")):
    {name: tensor.clone() for name, tensor in load_file(path).items()}
print(json.dumps({"imports": imported - began, "weights": time.monotonic() - imported}))
"""


def run(rounds: int = 3) -> dict[str, Any]:
    """Start the worker with the tiny model and the bare program in turn, `rounds` times; of each the median counts.

    A worker is ready when it has its weights and asks for jobs: then its answer to `health` says so. Both times begin
    with the process.
    """
    bare: list[dict[str, float]] = []
    ready: list[dict[str, float]] = []
    # In turn, so that a machine that becomes slower does so for both; the first of all warms the disk's cache.
    _bare()
    for _ in range(max(1, rounds)):
        bare.append(_bare())
        ready.append(_worker())
    middle = len(bare) // 2
    bare.sort(key=lambda parts: parts["process"])
    ready.sort(key=lambda parts: parts["ready"])
    return {
        "bench": "start",
        "model": "tiny",
        "rounds": len(bare),
        "bare_seconds": bare[middle],
        "worker_seconds": ready[middle],
        "ratio": ready[middle]["ready"] / bare[middle]["process"],
        "allowed_ratio": 1.5,
    }


def _bare() -> dict[str, float]:
    began = time.monotonic()
    weights = str(files("engine") / "weights" / "tiny")
    done = subprocess.run([sys.executable, "-c", _BARE, weights], check=True, capture_output=True, text=True)
    parts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return parts | {"process": time.monotonic() - began}


def _worker() -> dict[str, float]:
    platform = Platform()
    try:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            began = time.monotonic()
            with working(platform, ["model=tiny"], log=log):
                if not platform.asked.wait(_PATIENCE):
                    raise EngineError("the worker asked for no job", field="bench start", hint=log.read_text("utf-8"))
                asked = time.monotonic()
                loaded = _loaded(platform)
                return {"first_ping": platform.pings[0][0] - began, "asked": asked - began, "ready": loaded - began}
    finally:
        platform.close()


def _loaded(platform: Platform) -> float:
    deadline = time.monotonic() + _PATIENCE
    number = 0
    while time.monotonic() < deadline:
        number += 1
        platform.send(f"health-{number}", {"action": "health"})
        told = platform.result(f"health-{number}", _PATIENCE)["output"]
        if told["status"] == "ready":
            return time.monotonic()
        if told["status"] == "unhealthy":
            raise EngineError(str(told["problem"]), field="bench start")
        time.sleep(_LOOK)
    raise EngineError("the worker was not ready in time", field="bench start")
