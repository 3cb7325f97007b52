"""Fit what drawn pictures have in common, so that the embedded model's plans recognise other pictures.

    python -m scripts.train_tiny.pictures [--count 1500] [--measure FOLDER ...]

Writes engine/weights/tiny/pictures.json from people of the training, and prints as JSON the share of held-out people
that are recognised and, with --measure, the share of the pictures below each FOLDER that are taken for strange ones.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from engine.stages.familiar import FILE, Familiar, fit
from scripts.train_tiny.people import Mouth
from scripts.train_tiny.scene import draw, random_scene
from scripts.train_tiny.speech import Split

WEIGHTS = Path(__file__).parent.parent.parent / "engine" / "weights" / "tiny"
#: First seeds of the people that are fitted, and of the held-out ones that are counted.
FITTED, COUNTED = 910_000_000, 920_000_000
#: Share of the fitted pictures within the limit.
SHARE = 0.995
#: (width, height); each is drawn once, twice and three times as large.
SIZES = ((160, 96), (96, 160), (128, 128))
WHAT = "drawn people"
INSTEAD = "for a photograph take the real model: `multitalk models pull`, then recipe=card-24gb on a card of 24 GB"

Pixels = npt.NDArray[np.uint8]


def drawn(count: int, first: int, split: Split) -> Iterator[Pixels]:
    """Yield `count` drawn pictures of `split`, seeds from `first` on; every fifth went through JPEG."""
    rng = np.random.default_rng(first)
    for number in range(count):
        width, height = SIZES[number % 3]
        scale = 1 + number // 3 % 3
        scene = random_scene(first + number, (width * scale, height * scale), None, split)
        mouths = [Mouth(float(rng.uniform()), float(rng.uniform())) for _ in range(2)]
        pixels = draw(scene, float(rng.uniform(0, 5)), mouths)
        if number % 5 == 4:
            packed = io.BytesIO()
            Image.fromarray(pixels).save(packed, "JPEG", quality=int(rng.integers(70, 96)))
            pixels = np.asarray(Image.open(packed))
        yield pixels


def strange(familiar: Familiar, folder: Path) -> tuple[int, int]:
    """Return how many pictures below `folder` are recognised as strange, and of how many (96 pixels a side or more)."""
    caught = count = 0
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp", ".gif"}:
            continue
        try:
            with Image.open(path) as image:
                if min(image.size) < 96:
                    continue
                opaque = Image.new("RGBA", image.size, "white")
                opaque.alpha_composite(image.convert("RGBA"))
        except (OSError, ValueError, UnidentifiedImageError):
            continue
        count += 1
        caught += not familiar.knows(np.asarray(opaque.convert("RGB")))
    return caught, count


def main() -> None:
    """Fit, write and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--measure", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    familiar = fit(list(drawn(arguments.count, FITTED, "train")), what=WHAT, instead=INSTEAD, share=SHARE)
    (WEIGHTS / FILE).write_text(json.dumps(familiar.to_json(), indent=None) + "\n", "utf-8")
    recognised = [familiar.knows(pixels) for pixels in drawn(arguments.count // 3, COUNTED, "held_out")]
    counts = {str(folder): strange(familiar, folder) for folder in arguments.measure}
    print(
        json.dumps(
            {
                "drawn_recognised": [sum(recognised), len(recognised)],
                "others_caught": {folder: list(pair) for folder, pair in counts.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
