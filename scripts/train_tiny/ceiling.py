"""Measure how well the autoencoder alone keeps mouths: clips are drawn, encoded and decoded, without the transformer.

    python -m scripts.train_tiny.ceiling --vae RUN/vae

Prints one line of JSON per frame rate: the correlation of mouths with the truth, drawn and decoded, by skin class, and
how much still mouths move. No generated video can follow a voice better than that.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from engine.evaluation.metrics import SPEAKS
from engine.evaluation.mouths import correlation, mouth_openings
from engine.network.codec import WanCodec
from engine.stages.encode import to_pixels
from scripts.train_tiny.clips import Clip, make_clip
from scripts.train_tiny.vae import FRAMES, SIZES

RATES = (25.0, 12.5, 8.0)
#: Held-out clips that no other evaluation takes.
FIRST = 870_000


def code(codec: WanCodec, clip: Clip) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the clip's frames as they come back from the codec."""
    pixels = codec.decode(codec.encode(torch.stack([to_pixels(frame) for frame in clip.frames], dim=1)))
    decoded: np.ndarray[Any, np.dtype[np.uint8]] = ((pixels.permute(1, 2, 3, 0) + 1) * 127.5).round().byte().numpy()
    return decoded


def measure(codec: WanCodec, fps: float, clips: int) -> dict[str, Any]:
    """Return the figures of one frame rate."""
    drawn: list[float] = []
    decoded: dict[int, list[float]] = defaultdict(list)
    still: list[tuple[float, float]] = []
    for number in range(clips):
        size = SIZES[number % len(SIZES)]
        clip = make_clip(FIRST + number, frames=FRAMES, fps=fps, size=size, split="held_out")
        original, coded = (
            mouth_openings(frames, clip.mouth_boxes[:, 0]) for frames in (clip.frames, code(codec, clip))
        )
        for person, truth in enumerate(clip.openings[:, 1:]):
            if clip.silent[person]:
                still.append((float(original[person].std()), float(coded[person].std())))
            elif truth.std() > SPEAKS:
                drawn.append(correlation(original[person, 1:], truth))
                decoded[clip.skins[person]].append(correlation(coded[person, 1:], truth))
    mouths = [value for values in decoded.values() for value in values]
    return {
        "fps": fps,
        "mouths": len(mouths),
        "drawn": round(float(np.mean(drawn)), 4),
        "decoded": round(float(np.mean(mouths)), 4),
        "worst": round(min(mouths), 4),
        "by_skin": {skin: round(float(np.mean(values)), 4) for skin, values in sorted(decoded.items())},
        "still": [round(float(value), 5) for value in np.mean(still, axis=0)] if still else None,
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="finished autoencoder's folder")
    parser.add_argument("--clips", type=int, default=14)
    arguments = parser.parse_args()
    codec = WanCodec(AutoencoderKLWan.from_pretrained(arguments.vae, torch_dtype=torch.float32).train(False))
    for fps in RATES:
        print(json.dumps(measure(codec, fps, arguments.clips)), flush=True)


if __name__ == "__main__":
    main()
