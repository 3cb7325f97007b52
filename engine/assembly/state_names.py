"""The name of a request's states: a hash of everything that decides the bytes of its video."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from engine.assembly.kernels import uses_triton
from engine.assembly.model_settings import model_settings
from engine.assembly.provenance import Runtime
from engine.assembly.weights import LoadedModel
from engine.config import Config
from engine.data import Plan, Request
from engine.files.states import FORMAT

#: Groups and keys of a config that change no bytes, or that reach the name resolved: the weights by their hash, the
#: device and its number formats as the runtime has them, the request by its media's hashes and the plan, the model by
#: the settings that `multitalk retake` restores from the provenance.
LEFT_OUT = (
    "model",
    *("source", "reader", "memory", "access", "sink", "entrypoint", "launcher", "request", "resume", "live"),
    # The voices that they make are in the provenance by their hashes.
    *("speech", "diariser"),
    *("device", "dtype", "residual_dtype", "kernels", "attention", "compile", "parallel", "vae"),
)
#: Fields of a request that change no bytes, or that reach the name otherwise: media by their hashes, overrides by the
#: config, the rest by provenance and plan.
LEFT_OUT_OF_REQUEST = (
    *(
        "image",
        "images",
        "video",
        "speakers",
        "soundtrack",
        "filename",
        "job",
        "store",
        "sink",
        "answer_bytes",
        "overrides",
        "budget",
    ),
    *("frames", "fps", "negative_prompt", "live", "preview"),
)
#: Keys of provenance that say how a video is computed; the others say which video.
_HOW = (
    *("weights", "versions", "threads", "processes", "device", "dtype", "decode_dtype", "attention", "compile"),
    *("residual_dtype", "kernels"),
)
_PLAN = (
    *("canvas", "seats", "frames", "fps", "timing", "audio_type", "generated_frames", "generated_fps", "windows"),
    *("steps", "passes", "evaluations", "canvases"),
)


def state_name(
    request: Request,
    config: Config,
    plan: Plan,
    provenance: Mapping[str, Any],
    loaded: LoadedModel,
    runtime: Runtime,
    retake: tuple[int, int | None] | None = None,
) -> str:
    """Return the name of a request's states: a hash of the video, a dash, and a hash of what computes it.

    `retake` are the first window that is made again, from 1, and its seed. Imports torch.
    """
    import av
    import torch

    groups = {field.name: getattr(config, field.name) for field in fields(config)}
    asked = {field.name: getattr(request, field.name) for field in fields(request)}
    what = {
        "provenance": {key: value for key, value in provenance.items() if key not in _HOW},
        "config": {key: value for key, value in groups.items() if key not in LEFT_OUT},
        "model": model_settings(config),
        "tile": config.memory.tile,
        "request": {key: value for key, value in asked.items() if key not in LEFT_OUT_OF_REQUEST},
        "negative_prompt": request.negative_prompt,
        "plan": {key: getattr(plan, key) for key in _PLAN},
        "retake": retake,
    }
    # On CUDA nothing that the threads of the CPU compute decides more than last bits of the picture's statistics.
    own = [key for key in _HOW if key in provenance and not (key == "threads" and runtime.device == "cuda")]
    how = {
        "format": FORMAT,
        "provenance": {key: provenance[key] for key in own},
        "attention": config.attention,
        "compile": [config.compile.name, config.compile.backend],
        "parallel": [config.parallel.name, config.parallel.groups, runtime.divided],
        "residual_dtype": config.residual_dtype,
        "triton": uses_triton(config, runtime.device),
        "loras": sorted(_file_hash(path) for path in loaded.fits),
        "libraries": av.library_versions,
        "precision": torch.get_float32_matmul_precision(),
    }
    return f"{_hash(what)}-{_hash(how)}"


def machine_facts(runtime: Runtime) -> dict[str, Any]:
    """Return what this machine adds to the last bits of a video, although a state may move between machines."""
    import torch

    facts = {"architecture": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    if runtime.device == "cuda":
        return facts | {"card": torch.cuda.get_device_name(), "threads": torch.get_num_threads()}
    return facts | {"processor": _processor()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=_plain, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _file_hash(path: Path) -> str:
    """Return a hash of a LoRA's file: its size, and all of its first and last mebibyte."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        digest.update(b"%d\n" % size)
        for place in (0, max(0, size - 2**20)):
            file.seek(place)
            digest.update(file.read(2**20))
    return digest.hexdigest()
