"""What decoding in bfloat16 changes: `python -m scripts.codec_dtype > docs/measured/codec.json`.

One window's frames decoded in float32 and in bfloat16 from the same latents, and a video of ten windows generated with
each in both styles of continuation, on the embedded model. Its autoencoder is of the same class as the published one.
Takes minutes on a CPU.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine import EngineService, Request, Speaker, hookimpl
from engine.data import Frames, Window
from engine.evaluation.metrics import lab_drift, psnr_of, seam_ratio
from engine.plugin.manager import installed

Pictures = npt.NDArray[np.uint8]

WINDOWS, FRAMES = 10, 25
#: Steps of each window.
STEPS = 4


def main() -> int:
    """Print the report as JSON."""
    report = {
        "measures": "codec",
        "windows": WINDOWS,
        "frames_of_a_window": FRAMES,
        "steps": STEPS,
        "psnr_of_one_window_from_the_same_latents": round(_psnr(*_decoded()), 2),
        "continuation": {style: _compare(style) for style in ("multitalk", "infinitetalk")},
    }
    print(json.dumps(report, indent=2))
    return 0


def _compare(style: str) -> dict[str, Any]:
    """Compare two videos of ten windows that continue in a style."""
    runs = {dtype: _generate(style, dtype) for dtype in ("float32", "bfloat16")}
    (exact, windows), (rounded, _) = runs.values()
    return {
        "psnr_by_window": [
            round(_psnr(exact[part], rounded[part]), 2)
            for part in (slice(one.start + one.motion, one.start + one.motion + one.keep) for one in windows)
        ],
        **{
            dtype: {
                "lab_drift": round(lab_drift(pictures, 25), 3),
                "seam_ratio": _rounded(seam_ratio(pictures, windows)),
                "detail_last_to_first_window": round(_detail(pictures[-FRAMES:]) / _detail(pictures[:FRAMES]), 4),
            }
            for dtype, (pictures, _) in runs.items()
        },
    }


def _generate(style: str, dtype: str) -> tuple[Pictures, Sequence[Window]]:
    """Return the frames of a video of ten windows, before H.264, and its windows."""
    found: list[Pictures] = []

    class Watcher:
        @hookimpl
        def window_finished(self, window: Window, frames: Frames) -> None:
            found.append(frames.pictures.copy())

    examples = files("engine") / "examples"
    plugins = installed().plugins
    plugins.register(watcher := Watcher())
    with tempfile.TemporaryDirectory() as folder:
        service = EngineService(
            [
                f"sink.folder={folder}",
                "device=cpu",
                f"vae.decode_dtype={dtype}",
                f"continuation.style={style}",
                f"model.window={FRAMES}",
                "continuation.frames=5",
                f"sampler.steps={STEPS}",
            ]
        )
        try:
            request = Request(
                "A woman speaks.",
                str(examples / "one.png"),
                (Speaker(str(examples / "one.flac")),),
                frames=FRAMES + (WINDOWS - 1) * (FRAMES - 5),
            )
            plan = service.generate(request).plan
        finally:
            service.close()
            plugins.unregister(watcher)
    assert len(plan.windows) == WINDOWS
    return np.concatenate(found), plan.windows


def _decoded() -> tuple[Pictures, Pictures]:
    """Return frames of the examples' people, decoded in float32 and in bfloat16 from the same latents."""
    import torch
    from diffusers import AutoencoderKLWan
    from PIL import Image

    from engine.network.codec import WanCodec

    pictures = []
    for name in ("one.png", "two.png"):
        with Image.open(Path(str(files("engine") / "examples" / name))) as picture:
            pictures.append(np.asarray(picture.convert("RGB").resize((192, 128))))
    # A cut between two pictures, and frames that move.
    frames = [np.roll(pictures[index > 8], 3 * index, 1) for index in range(17)]
    pixels = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 127.5 - 1
    weights = str(files("engine") / "weights" / "tiny" / "vae")
    kind: Any = AutoencoderKLWan
    results = []
    latents = None
    for dtype in (torch.float32, torch.bfloat16):
        codec = WanCodec(kind.from_pretrained(weights, torch_dtype=torch.float32).eval(), dtype)
        latents = codec.encode(pixels) if latents is None else latents
        decoded = codec.decode(latents)
        results.append(((decoded + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy())
    return results[0], results[1]


def _psnr(one: Pictures, other: Pictures) -> float:
    return psnr_of(float(np.square(one.astype(np.float64) - other).mean()))


def _detail(pictures: Pictures) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    light = pictures.mean(-1)
    return float(np.abs(np.diff(light, axis=1)).mean() + np.abs(np.diff(light, axis=2)).mean())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


if __name__ == "__main__":
    sys.exit(main())
