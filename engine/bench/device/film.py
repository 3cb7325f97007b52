"""A video of the embedded model: the engine's own code from request to file, on the card compared with the CPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from engine import EngineService, Request, Speaker
from engine.assembly.escape import override as quoted
from engine.bench.device.measure import DeviceBench, Rows, Skipped, psnr
from engine.evaluation.frames import read_video

#: Frames of the video, and its steps.
_FRAMES, _STEPS = 9, 2


def generate(bench: DeviceBench) -> Rows:
    """Generate with `model=tiny` on the CPU, then on the card in float32 and in its default dtype."""
    videos: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as folder:

        def film(name: str, device: str, dtype: str) -> Callable[[], dict[str, Any]]:
            return lambda: _video(bench, videos, Path(folder) / name, name, device, dtype)

        yield "cpu", bench.attempt(film("cpu", "cpu", "float32"))
        yield "cuda, float32", bench.attempt(film("cuda, float32", "cuda", "float32"))
        yield "cuda", bench.attempt(film("cuda", "cuda", "auto"))


def _video(
    bench: DeviceBench, videos: dict[str, torch.Tensor], folder: Path, name: str, device: str, dtype: str
) -> dict[str, Any]:
    if device == "cuda":
        bench.need_cuda()
    examples = files("engine") / "examples"
    voices = (Speaker(str(examples / "left.flac")), Speaker(str(examples / "right.flac")))
    request = Request("two people talk", str(examples / "two.png"), voices, frames=_FRAMES, seed=1)
    overrides = ("model=tiny", "sink=disk", f"device={device}", f"dtype={dtype}", f"model.standard.steps={_STEPS}")
    service = EngineService([*overrides, quoted("sink.folder", str(folder))])
    try:
        began = time.perf_counter()
        service.load()
        loaded = time.perf_counter()
        delivery = service.generate(request)
        seconds = time.perf_counter() - loaded
    finally:
        service.close()
    if delivery.address is None:
        raise Skipped("the sink keeps no file")
    videos[name] = torch.from_numpy(read_video(Path(delivery.address)))
    against = {} if name == "cpu" or "cpu" not in videos else {"psnr_to_cpu": psnr(videos[name], videos["cpu"])}
    return {"frames": len(videos[name]), "load_seconds": loaded - began, "seconds": seconds, **against}
