"""Fit the source picture and regions to the model's size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data import Canvas, Fit, Media, Region, Seat, Speaker
from engine.errors import RequestError
from engine.media.picture import read_mask

#: Pixels per latent cell, and latent cells per token of the network, along one side.
CELL, PATCH = 8, 2
#: A mask pixel of at least this grey level belongs to the speaker.
THRESHOLD = 128
#: Share of an automatic region's part of the picture that stays free on each side.
MARGIN = 0.05

_BILINEAR = Image.Resampling.BILINEAR
#: Scaled pictures up to this many pixels are scaled as a whole and then cropped, as in the reference. Of a larger one
#: (a very flat picture) only the visible part is resampled, which changes some bytes by one level.
_WHOLE = 32 * 2**20

Mask = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]


def choose_bucket(source: tuple[int, int], buckets: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Return the (width, height) in pixels of the bucket for a picture of `source` (width, height).

    `buckets` maps a nominal height / width to (height, width); the nearest key wins, in a tie the first.
    Source: MultiTalk, wan/multitalk.py, generate (its rounded keys are used as they are).
    """
    width, height = source
    key = min(buckets, key=lambda key: abs(float(key) - height / width))
    rows, columns = buckets[key]
    return columns, rows


def make_canvas(source: tuple[int, int], target: tuple[int, int], fit: Fit = "crop") -> Canvas:
    """Decide how a picture of `source` (width, height) fills `target`.

    "crop": scaled to cover the target, then cropped evenly on both sides (MultiTalk, utils: resize_and_centercrop:
    sizes rounded up, offsets rounded half to even). "pad": scaled to be fully visible, with black bars on both sides.
    """
    scales = tuple(new / old for new, old in zip(target, source, strict=True))
    if fit == "crop":
        scale = max(scales)
        scaled = (math.ceil(scale * source[0]), math.ceil(scale * source[1]))
    else:
        scale = min(scales)
        scaled = (
            min(target[0], max(1, round(scale * source[0]))),
            min(target[1], max(1, round(scale * source[1]))),
        )
    offset = (round((scaled[0] - target[0]) / 2), round((scaled[1] - target[1]) / 2))
    return Canvas(source=source, scaled=scaled, target=target, offset=offset, fit=fit)


def apply_canvas(image: Picture, canvas: Canvas) -> Picture:
    """Scale a uint8 RGB picture (height, width, 3) of the canvas' source size to (target height, target width, 3).

    Uses Pillow's bilinear filter on bytes, as in the reference.
    """
    if image.shape != (canvas.source[1], canvas.source[0], 3):
        raise ValueError(f"a picture of shape {image.shape} does not belong to a canvas for {canvas.source}")
    picture = Image.fromarray(image)
    left, top, right, bottom = _view(canvas)
    x, y = max(0, canvas.offset[0]), max(0, canvas.offset[1])
    if canvas.scaled[0] * canvas.scaled[1] <= _WHOLE:
        resized = picture.resize(canvas.scaled, _BILINEAR).crop((x, y, x + right - left, y + bottom - top))
    else:
        across, down = canvas.source[0] / canvas.scaled[0], canvas.source[1] / canvas.scaled[1]
        corner = (min(canvas.source[0], (x + right - left) * across), min(canvas.source[1], (y + bottom - top) * down))
        resized = picture.resize((right - left, bottom - top), _BILINEAR, box=(x * across, y * down, *corner))
    result: Picture = np.zeros((canvas.target[1], canvas.target[0], 3), np.uint8)
    result[top:bottom, left:right] = np.asarray(resized)
    return result


def region_masks(
    regions: Sequence[Region], masks: Sequence[Path | None], canvas: Canvas
) -> tuple[Mask, tuple[str, ...]]:
    """Draw each speaker's region on the latent grid.

    Returns float32 0/1 (speakers + 1, target height / 8, target width / 8), the last one being the background, and
    warnings about regions that overlap, are cut or have no effect. `masks` are the local files of the mask pictures. A
    single speaker owns everything, including the background; automatic regions are equal parts from left to right.
    Nearest-neighbour lookups as in the reference (source -> scaled -> crop -> latent). Raises RequestError for a region
    outside the picture, cropped away or too small for the network.
    """
    if len(regions) != len(masks):
        raise RequestError(
            f"{len(regions)} speakers but {len(masks)} regions", field="request.speakers", hint="give each one region"
        )
    warnings: list[str] = []
    cells = _source_cells(canvas)
    rows = [
        _latent(_find(index, region, file, len(regions), canvas, warnings), cells)
        for index, (region, file) in enumerate(zip(regions, masks, strict=True))
    ]
    if len(rows) == 1:
        _require_cells(0, regions[0], rows[0], canvas)
        if _kind(regions[0]) not in ("auto", "found"):
            warnings.append("speakers[0]: a region has no effect with one speaker, whose voice moves the whole picture")
        return np.ones((2, *rows[0].shape), np.float32), tuple(warnings)
    for index, (region, row) in enumerate(zip(regions, rows, strict=True)):
        _require_cells(index, region, row, canvas)
    warnings += _overlaps(rows)
    background = ~np.logical_or.reduce(rows)
    # The bars of a padded picture contain no person.
    return np.stack([*rows, background]).astype(np.float32), tuple(warnings)


def pixel_mask(regions: Sequence[Region], masks: Sequence[Path | None], canvas: Canvas) -> npt.NDArray[np.bool_]:
    """Return where the target shows any of the regions: bool (target height, target width).

    As `region_masks`, but for each pixel, and with the region of a single speaker. Raises RequestError as it does.
    """
    cells, warnings = _source_cells(canvas, 1), list[str]()
    found = [
        _latent(_find(index, region, file, len(regions), canvas, warnings), cells)
        for index, (region, file) in enumerate(zip(regions, masks, strict=True))
    ]
    mask: npt.NDArray[np.bool_] = np.logical_or.reduce(found)
    return mask


def make_seats(
    speakers: Sequence[Speaker], media: Media, canvas: Canvas, spans: Sequence[tuple[float, float]]
) -> tuple[tuple[Seat, ...], tuple[str, ...]]:
    """Return where each speaker is in the target picture and when they speak, with warnings. Raises as `region_masks`.

    `spans` holds (begin, end) of each voice in seconds.
    """
    masks, warnings = region_masks([speaker.region for speaker in speakers], media.masks, canvas)
    seats = []
    for index, speaker in enumerate(speakers):
        rows, columns = np.nonzero(masks[index])
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        left, top, right, bottom = (int(edge) * CELL for edge in box)
        seats.append(
            Seat(
                speaker=index,
                box=(left, top, right, bottom),
                kind=_kind(speaker.region),
                silent=speaker.audio is None,
                seconds=media.seconds[index],
                begins=spans[index][0],
            )
        )
    return tuple(seats), warnings


# --- regions ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
    """Rows and columns of the source picture, end exclusive."""

    rows: tuple[int, int]
    columns: tuple[int, int]


def _kind(region: Region) -> str:
    if region.found:
        return "found"
    return "mask" if region.mask is not None else "box" if region.box is not None else "auto"


def _find(
    index: int, region: Region, file: Path | None, count: int, canvas: Canvas, warnings: list[str]
) -> _Box | npt.NDArray[np.bool_]:
    width, height = canvas.source
    if file is not None:
        field = f"request.speakers[{index}].region.mask"
        mask = read_mask(file, field=field)
        if mask.shape != (height, width):
            raise RequestError(
                f"the mask has {mask.shape[1]} x {mask.shape[0]} pixels, the picture {width} x {height}",
                field=field,
                hint="draw the mask over the upright picture",
                code="bad_region",
            )
        bright: npt.NDArray[np.bool_] = mask >= THRESHOLD
        if not bright.any():
            hint = "paint the speaker white"
            raise RequestError("the mask has no bright pixel", field=field, hint=hint, code="bad_region")
        return bright
    if region.box is not None:
        return _source_box(index, region.box, canvas, warnings)
    if count == 1:
        return _Box((0, height), (0, width))
    part = width // count
    return _Box(
        (int(MARGIN * height), int((1 - MARGIN) * height)),
        (int(part * MARGIN + index * part), int(part * (1 - MARGIN) + index * part)),
    )


def _source_box(index: int, box: tuple[float, float, float, float], canvas: Canvas, warnings: list[str]) -> _Box:
    field = f"request.speakers[{index}].region.box"
    width, height = canvas.source
    scale = (width, height, width, height) if max(box) <= 1 else (1, 1, 1, 1)
    left, top, right, bottom = (int(edge * unit) for edge, unit in zip(box, scale, strict=True))
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    hint = f"give [x0, y0, x1, y1] within [0, 0, {width}, {height}] or fractions of it"
    if right <= left or bottom <= top:
        raise RequestError(f"the box {list(box)} holds no pixel", field=field, hint=hint, code="bad_region")
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise RequestError(f"the box {list(box)} lies outside the picture", field=field, hint=hint, code="bad_region")
    if inside != (left, top, right, bottom):
        warnings.append(f"speakers[{index}]: the box {list(box)} reaches beyond the picture and was cut at its edge")
    return _Box((inside[1], inside[3]), (inside[0], inside[2]))


def _view(canvas: Canvas) -> tuple[int, int, int, int]:
    # The part of the target that shows the picture: all of it for "crop", all except the bars for "pad".
    left, top = max(0, -canvas.offset[0]), max(0, -canvas.offset[1])
    return (
        left,
        top,
        left + min(canvas.target[0], canvas.scaled[0]),
        top + min(canvas.target[1], canvas.scaled[1]),
    )


def _source_cells(canvas: Canvas, side: int = CELL) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the source row and column for each row and column of cells of `side` pixels; -1 in a bar.

    torch's "nearest" is floor(i * scale) in float32; target -> latent takes every 8th.
    """
    axes = []
    for axis in (1, 0):
        source, scaled, target, offset = (
            pair[axis] for pair in (canvas.source, canvas.scaled, canvas.target, canvas.offset)
        )
        places = np.arange(target // side) * side + offset
        scale = np.float32(source) / np.float32(scaled)
        lookup = np.minimum(np.floor(places.astype(np.float32) * scale).astype(np.int64), source - 1)
        axes.append(np.where((places >= 0) & (places < scaled), lookup, -1))
    return axes[0], axes[1]


def _latent(
    region: _Box | npt.NDArray[np.bool_], cells: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
) -> npt.NDArray[np.bool_]:
    rows, columns = cells
    if isinstance(region, _Box):
        inside_rows = (rows >= region.rows[0]) & (rows < region.rows[1])
        inside_columns = (columns >= region.columns[0]) & (columns < region.columns[1])
        return inside_rows[:, None] & inside_columns[None, :]
    return region[rows[:, None], columns[None, :]] & (rows >= 0)[:, None] & (columns >= 0)[None, :]


def _require_cells(index: int, region: Region, row: npt.NDArray[np.bool_], canvas: Canvas) -> None:
    # The network uses every second cell in both directions; a region between them would have no effect.
    if row[::PATCH, ::PATCH].any():
        return
    kind = _kind(region)
    name = f"request.speakers[{index}].region" + ("" if kind in ("auto", "found") else f".{kind}")
    width, height = canvas.target
    what = "is cut off by the crop" if not row.any() else f"is smaller than a {CELL * PATCH}-pixel token"
    other = "fit=pad, " if canvas.fit == "crop" else ""
    raise RequestError(
        f"the region {what} of the {width} x {height} target",
        field=name,
        hint=f"use {other}a larger region or a larger resolution",
        code="bad_region",
    )


def _overlaps(rows: Sequence[npt.NDArray[np.bool_]]) -> list[str]:
    warnings = []
    for second in range(len(rows)):
        for first in range(second):
            shared = int((rows[first] & rows[second]).sum())
            if shared:
                share = shared / min(int(rows[first].sum()), int(rows[second].sum()))
                warnings.append(
                    f"speakers[{first}] and speakers[{second}] overlap in {share:.0%} of the smaller region"
                )
    return warnings
