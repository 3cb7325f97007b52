"""What torch's allocator keeps that nobody uses, after the stages of a window, with and without expandable segments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import torch

from engine.bench.device.measure import Bench, Rows
from engine.bench.device.modules import autoencoder, image_encoder, text_encoder, transformer
from engine.bench.transformer import build_inputs
from engine.multitalk.codec import WanCodec
from engine.multitalk.image import ImageEncoder

#: Read by torch when its first tensor on a card is made, so each setting takes a process.
_VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"


def fragments(bench: Bench) -> Rows:
    """Encode, denoise and decode in a process for each setting; on a CPU in one, which has no such allocator."""
    for expandable in (False, True) if bench.cuda else (False,):
        name = f"expandable_segments:{expandable}"
        yield name, bench.tried(partial(_child, bench, name))


def _child(bench: Bench, setting: str) -> dict[str, Any]:
    bench.need(10)
    bench.free()
    settings = {"device": bench.device, "reduced": bench.shapes.reduced}
    done = subprocess.run(
        [sys.executable, "-m", "engine.bench.device.fragments", json.dumps(settings)],
        env=os.environ | {_VARIABLE: setting},
        capture_output=True,
        text=True,
        timeout=bench.left(),
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(lines[-1])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def walk(bench: Bench) -> dict[str, Any]:
    """Run the stages of a window one after the other; return what the allocator holds after each."""
    random, (_, grid) = bench.random, bench.shapes.first
    frames, height, width = bench.shapes.video
    stages: dict[str, Any] = {}
    text = text_encoder(bench)
    tokens = torch.ones(1, bench.shapes.text_tokens, dtype=torch.long, device=bench.device)
    text(input_ids=tokens)
    # As it leaves when the transformer comes.
    del text
    bench.free()
    stages["text"] = _held(bench)
    codec, image = WanCodec(autoencoder(bench)), ImageEncoder(image_encoder(bench))
    model = transformer(bench, bench.shapes.few_layers)
    pixels = bench.noise(3, frames, height, width, dtype=torch.float32).clamp(-1, 1)
    latents = codec.encode(pixels)
    image.encode(pixels[:, 0])
    stages["encode"] = _held(bench)
    for speakers in (2, 1):
        inputs = build_inputs(model, grid, speakers, random)
        model(inputs[0], inputs[1], conditions=inputs[2])
    stages["denoise"] = _held(bench)
    codec.decode(latents)
    stages["decode"] = _held(bench)
    return {"stages": stages, "expandable": _expandable(bench)}


def _held(bench: Bench) -> dict[str, Any]:
    if not bench.cuda:
        return {"reached": True}
    torch.cuda.synchronize()
    known = torch.cuda.memory_stats()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    return {
        "allocated_bytes": allocated,
        "reserved_bytes": reserved,
        "unused_bytes": reserved - allocated,
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "retries": known.get("num_alloc_retries", 0),
    }


def _expandable(bench: Bench) -> bool | None:
    """Return what the allocator itself says, None where it does not."""
    if not bench.cuda:
        return None
    snapshot: Any = torch.cuda.memory._snapshot()
    found = snapshot.get("allocator_settings", {}).get("expandable_segments")
    return None if found is None else bool(found)


def main(settings: str) -> int:
    """Print the walk of one process as JSON."""
    torch.manual_seed(0)
    with torch.no_grad():
        print(json.dumps(walk(Bench(**json.loads(settings)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
