"""Unused memory in torch's allocator after the stages of a window, with and without expandable segments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import torch

from engine.bench.device.measure import DeviceBench, Rows
from engine.bench.device.modules import autoencoder, image_encoder, text_encoder, transformer
from engine.bench.transformer import build_inputs
from engine.network.codec import WanCodec
from engine.network.image import ImageEncoder

#: torch reads this when its first tensor on a card is created, so each setting needs its own process.
_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"


def fragments(bench: DeviceBench) -> Rows:
    """Encode, denoise and decode in one process per setting; on a CPU in a single one, which has no such allocator."""
    for expandable in (False, True) if bench.cuda else (False,):
        name = f"expandable_segments:{expandable}"
        yield name, bench.attempt(partial(_child, bench, name))


def _child(bench: DeviceBench, setting: str) -> dict[str, Any]:
    bench.need(10)
    bench.free()
    settings = {"device": bench.device, "reduced": bench.shapes.reduced}
    completed = subprocess.run(
        [sys.executable, "-m", "engine.bench.device.fragments", json.dumps(settings)],
        env=os.environ | {_VARIABLE: setting},
        capture_output=True,
        text=True,
        timeout=bench.seconds_left(),
        check=False,
    )
    if completed.returncode:
        lines = completed.stderr.strip().splitlines() or [f"status {completed.returncode}"]
        raise RuntimeError(lines[-1])
    report: dict[str, Any] = json.loads(completed.stdout.strip().splitlines()[-1])
    return report


def walk(bench: DeviceBench) -> dict[str, Any]:
    """Run the stages of a window one after the other; return what the allocator reserves after each."""
    random, (_, grid) = bench.random, bench.shapes.first
    frames, height, width = bench.shapes.video
    stages: dict[str, Any] = {}
    text = text_encoder(bench)
    tokens = torch.ones(1, bench.shapes.text_tokens, dtype=torch.long, device=bench.device)
    text(input_ids=tokens)
    # It leaves the device when the transformer is loaded.
    del text
    bench.free()
    stages["text"] = _reserved(bench)
    codec, image = WanCodec(autoencoder(bench)), ImageEncoder(image_encoder(bench))
    model = transformer(bench, bench.shapes.few_layers)
    pixels = bench.noise(3, frames, height, width, dtype=torch.float32).clamp(-1, 1)
    latents = codec.encode(pixels)
    image.encode(pixels[:, 0])
    stages["encode"] = _reserved(bench)
    for speakers in (2, 1):
        inputs = build_inputs(model, grid, speakers, random)
        model(inputs[0], inputs[1], conditions=inputs[2])
    stages["denoise"] = _reserved(bench)
    codec.decode(latents)
    stages["decode"] = _reserved(bench)
    return {"stages": stages, "expandable": _expandable(bench)}


def _reserved(bench: DeviceBench) -> dict[str, Any]:
    if not bench.cuda:
        return {"reached": True}
    torch.cuda.synchronize()
    stats = torch.cuda.memory_stats()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    return {
        "allocated_bytes": allocated,
        "reserved_bytes": reserved,
        "unused_bytes": reserved - allocated,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "retries": stats.get("num_alloc_retries", 0),
    }


def _expandable(bench: DeviceBench) -> bool | None:
    """Return the allocator's own setting; None if it does not report it."""
    if not bench.cuda:
        return None
    snapshot: Any = torch.cuda.memory._snapshot()
    setting = snapshot.get("allocator_settings", {}).get("expandable_segments")
    return None if setting is None else bool(setting)


def main(settings: str) -> int:
    """Print the result of one process as JSON."""
    torch.manual_seed(0)
    with torch.no_grad():
        print(json.dumps(walk(DeviceBench(**json.loads(settings)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
