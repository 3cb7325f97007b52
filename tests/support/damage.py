"""Drawn people who talk, and what is done to their frames to test the measures of damage."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from engine.evaluation.likeness import Pictures
from scripts.train_tiny.clips import make_clip
from scripts.train_tiny.speech import synthetic

#: Four windows of a second.
SHARES = [slice(begin, begin + 25) for begin in range(0, 100, 25)]
SEEDS = {7_700_000: (160, 96), 7_700_001: (128, 128), 7_700_002: (96, 160)}
Damage = Callable[[Pictures, int], Pictures]


@cache
def clip(seed: int, people: int = 1) -> tuple[Pictures, Pictures, tuple[tuple[float, ...], ...]]:
    """Frames, the picture, and the boxes of the picture's mouths."""
    size = SEEDS.get(seed, (160, 96))
    made = make_clip(seed, frames=100, size=size, people=people, split="held_out", speak=synthetic)
    return made.frames, made.frames[0], tuple(tuple(box) for box in made.mouth_boxes[:, 0].tolist())


def face(seed: int) -> tuple[slice, slice]:
    _, picture, ((x0, y0, x1, _),) = clip(seed)
    unit = (x1 - x0) / 0.96
    x, y = (x0 + x1) / 2, y0 + 0.25 * unit
    height, width = picture.shape[:2]
    rows = slice(max(0, round(y - 1.6 * unit)), min(height, round(y + 0.7 * unit)))
    return rows, slice(max(0, round(x - 1.1 * unit)), min(width, round(x + 1.1 * unit)))


def blurred(frames: Pictures, _: int) -> Pictures:
    return np.stack([gaussian_filter(frame, (1, 1, 0)) for frame in frames])


def tinted(frames: Pictures, _: int) -> Pictures:
    result: Pictures = np.clip(frames * np.array([1.12, 1.0, 0.88]), 0, 255).astype(np.uint8)
    return result


def exchanged(frames: Pictures, seed: int) -> Pictures:
    """Another drawn person's head, talking on, where the first one's was."""
    here, there = face(seed), face(seed + 10)
    other = clip(seed + 10)[0][50:, *there]
    height, width = here[0].stop - here[0].start, here[1].stop - here[1].start
    result = frames.copy()
    for number, frame in enumerate(other):
        result[number, *here] = np.asarray(Image.fromarray(frame).resize((width, height)))
    return result


def melted(frames: Pictures, seed: int) -> Pictures:
    """The face runs like wax, by a tenth of its width, and keeps its mean colours."""
    here = face(seed)
    height, width = here[0].stop - here[0].start, here[1].stop - here[1].start
    rng = np.random.default_rng(seed)
    flow = np.stack([gaussian_filter(rng.normal(size=(height, width)), width / 10) for _ in range(2)])
    flow *= 0.1 * width / flow.std()
    places = np.mgrid[:height, :width] + flow
    result = frames.copy()
    for number, frame in enumerate(frames):
        part = gaussian_filter(frame[here].astype(np.float32), (1.5, 1.5, 0))
        moved = [map_coordinates(part[..., c], places, order=1, mode="nearest") for c in range(3)]
        result[number, *here] = np.stack(moved, -1).astype(np.uint8)
    return result


def smeared(frames: Pictures, seed: int) -> Pictures:
    """Everything runs, as the scenery does in windows that have only the frames before them."""
    rng = np.random.default_rng(seed)
    flow = np.stack([gaussian_filter(rng.normal(size=frames.shape[1:3]), 8) for _ in range(2)])
    places = np.mgrid[: frames.shape[1], : frames.shape[2]] + 5 * flow / flow.std()
    moved = [[map_coordinates(frame[..., c], places, order=1, mode="nearest") for c in range(3)] for frame in frames]
    return np.moveaxis(np.array(moved), 1, -1).astype(np.uint8)
