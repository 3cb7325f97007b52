"""Sizes, the picture and the speakers' regions by the rules of the public code.

They differ from the engine's: the picture is resized by Lanczos' filter to sides rounded down, automatic regions have a
margin of 10 %, and a mask's soft edge counts as inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.errors import ConfigError, RequestError
from engine.media.canvas import choose_bucket

if TYPE_CHECKING:
    from torch import Tensor

#: Share of an automatic region's half of the picture that stays free on each side.
MARGIN = 0.1
#: Nominal height / width -> (height, width), by resolution.
BUCKETS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "480p": {
        "0.26": (320, 1216),
        "0.31": (352, 1120),
        "0.38": (384, 1024),
        "0.43": (416, 960),
        "0.52": (448, 864),
        "0.58": (480, 832),
        "0.67": (512, 768),
        "0.74": (544, 736),
        "0.86": (576, 672),
        "0.95": (608, 640),
        "1.05": (640, 608),
        "1.17": (672, 576),
        "1.29": (704, 544),
        "1.35": (736, 544),
        "1.50": (768, 512),
        "1.67": (800, 480),
        "1.73": (832, 480),
        "2.00": (896, 448),
        "2.31": (960, 416),
        "2.58": (992, 384),
        "2.75": (1056, 384),
        "3.09": (1088, 352),
        "3.70": (1184, 320),
        "3.80": (1216, 320),
        "3.90": (1248, 320),
        "4.00": (1280, 320),
    },
    "720p": {
        "0.25": (480, 1920),
        "0.29": (512, 1792),
        "0.32": (544, 1696),
        "0.36": (576, 1600),
        "0.40": (608, 1504),
        "0.49": (672, 1376),
        "0.54": (704, 1312),
        "0.59": (736, 1248),
        "0.69": (800, 1152),
        "0.74": (832, 1120),
        "0.82": (864, 1056),
        "0.88": (896, 1024),
        "0.94": (928, 992),
        "1.00": (960, 960),
        "1.07": (992, 928),
        "1.14": (1024, 896),
        "1.22": (1056, 864),
        "1.31": (1088, 832),
        "1.35": (1120, 832),
        "1.44": (1152, 800),
        "1.70": (1248, 736),
        "2.00": (1344, 672),
        "2.05": (1376, 672),
        "2.47": (1504, 608),
        "2.53": (1536, 608),
        "2.83": (1632, 576),
        "3.06": (1664, 544),
        "3.12": (1696, 544),
        "3.62": (1856, 512),
        "3.93": (1888, 480),
        "4.00": (1920, 480),
    },
}
#: (height, width) of a video without a picture, by resolution.
TEXT_ONLY: Mapping[str, tuple[int, int]] = {"480p": (480, 832), "720p": (768, 1280)}

#: Rows and columns of a source picture: (y0, x0, y1, x1), ends exclusive.
Box = tuple[int, int, int, int]


def frame_count(frames: int) -> int:
    """Return the number of frames, 4n + 1, that a window of `frames` frames is rounded down to."""
    return frames // 4 * 4 + 1


def choose_size(source: tuple[int, int] | None, resolution: str) -> tuple[int, int]:
    """Return the (height, width) in pixels for a picture of `source` (height, width), or for none.

    Raises ConfigError for an unknown resolution.
    """
    if resolution not in BUCKETS:
        raise ConfigError(f"no resolution {resolution!r}", field="model.resolution", hint=" or ".join(BUCKETS))
    if source is None:
        return TEXT_ONLY[resolution]
    width, height = choose_bucket((source[1], source[0]), BUCKETS[resolution])
    return height, width


def fit_picture(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Scale a picture (height, width, 3) to cover `size` (height, width), and cut it evenly.

    Source: diffusers, VideoProcessor with resize_mode "crop".
    """
    height, width = size
    source = Image.fromarray(picture)
    # Compared without division, and rounded down.
    wide = width * source.height > source.width * height
    scaled = (
        width if wide else source.width * height // source.height,
        source.height * width // source.width if wide else height,
    )
    resized = source.resize(scaled, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height))
    canvas.paste(resized, (width // 2 - scaled[0] // 2, height // 2 - scaled[1] // 2))
    return np.asarray(canvas)


def region_masks(
    source: tuple[int, int], boxes: Sequence[Box] | None = None, others: Sequence[Box] = ()
) -> npt.NDArray[np.uint8]:
    """Draw two speakers' regions on a picture of `source` (height, width): (3 + others, height, width), 0 or 1.

    The rows are the two speakers, the background (what belongs to neither), and bystanders, who do not reduce the
    background. Without `boxes` the speakers have the left and the right half, with a margin. Raises RequestError.
    """
    height, width = source
    if boxes is None:
        half = width // 2
        top, bottom = int(height * MARGIN), int(height * (1 - MARGIN))
        left, right = int(half * MARGIN), int(half * (1 - MARGIN))
        boxes = [(top, left, bottom, right), (top, int(half * MARGIN + half), bottom, int(half * (1 - MARGIN) + half))]
    if len(boxes) != 2:
        raise RequestError(f"{len(boxes)} boxes", field="speakers", hint="two speakers have one each")
    people = [_draw(source, box) for box in boxes]
    background = 1 - (people[0] | people[1])
    return np.stack([*people, background, *(_draw(source, box) for box in others)])


def _draw(source: tuple[int, int], box: Box) -> npt.NDArray[np.uint8]:
    top, left, bottom, right = box
    mask = np.zeros(source, np.uint8)
    mask[max(0, top) : bottom, max(0, left) : right] = 1
    if not mask.any():
        raise RequestError(f"the box {list(box)} holds no pixel", field="speakers", hint="rows first: y0, x0, y1, x1")
    return mask


def fit_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale masks (K, height, width) to cover `size` (height, width), and cut them evenly: float32, 0 .. 1.

    The network takes them at this size; what is above 0 is inside.
    """
    import torch
    from torch.nn import functional as F

    height, width = size
    rows, columns = masks.shape[1:]
    scale = max(height / rows, width / columns)
    scaled = (int(scale * rows), int(scale * columns))
    # The exact side may come out one too small.
    scaled = (max(scaled[0], height), max(scaled[1], width))
    resized = F.interpolate(masks[None].to(torch.float32), size=scaled, mode="bilinear", align_corners=False)[0]
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return resized[:, top : top + height, left : left + width]
