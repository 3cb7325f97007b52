"""Media and Plan -> a picture that shows each speaker's place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine.data import Canvas, Found, Media, Plan, Request
from engine.errors import RequestError
from engine.files.atomic import write
from engine.media.canvas import apply_canvas, region_masks
from engine.media.picture import read_picture

_COLORS = ((230, 80, 60), (50, 130, 240), (60, 180, 90), (240, 180, 40), (170, 90, 220), (40, 190, 200))
#: Longer side in pixels below which a preview is enlarged, so that its names can be read.
_READABLE = 640


def draw_preview(media: Media, request: Request, plan: Plan, path: Path) -> None:
    """Write a PNG of the cropped picture with each speaker's latent cells tinted, framed and named.

    An existing PNG is replaced. Raises RequestError if the picture or a mask cannot be read, or if `path` does not end
    in .png, is one of the request's own files, or cannot be written.
    """
    _check_path(path, media)
    image = apply_canvas(read_picture(media.image, field="request.image"), plan.canvas)
    masks, _ = region_masks([speaker.region for speaker in request.speakers], media.masks, plan.canvas)
    height, width = image.shape[:2]
    factor = max(1, math.ceil(_READABLE / max(height, width)))
    sheet = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.NEAREST)
    for seat in plan.seats:
        tint = Image.new("RGB", sheet.size, _COLORS[seat.speaker % len(_COLORS)])
        cells = Image.fromarray((masks[seat.speaker] * 80).astype(np.uint8))
        sheet.paste(tint, mask=cells.resize(sheet.size, Image.Resampling.NEAREST))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=max(16, sheet.height // 30))
    for seat in plan.seats:
        color = _COLORS[seat.speaker % len(_COLORS)]
        left, top, right, bottom = (edge * factor for edge in seat.box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=max(2, sheet.height // 240))
        label = f" speaker {seat.speaker + 1}{' (silent)' if seat.silent else ''} "
        corner = (left + 4, top + 4)
        draw.rectangle(draw.textbbox(corner, label, font=font), fill=color)
        draw.text(corner, label, font=font, fill="white")
    for number, person in enumerate(media.silent_people, start=len(plan.seats) + 1):
        _frame(draw, _on_target(person, plan.canvas, factor), f" person {number} (no voice) ", (150, 150, 150), font)
    _save(sheet, path)


def draw_found(media: Media, people: Sequence[Found], path: Path) -> None:
    """Write a PNG of the whole picture with the found people framed and numbered. Raises as `draw_preview`."""
    _check_path(path, media)
    sheet = Image.fromarray(read_picture(media.image, field="request.image"))
    factor = max(1, math.ceil(_READABLE / max(sheet.size)))
    sheet = sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=max(16, sheet.height // 30))
    sides = (sheet.width, sheet.height, sheet.width, sheet.height)
    for number, person in enumerate(people, start=1):
        left, top, right, bottom = (edge * side for edge, side in zip(person.box, sides, strict=True))
        color = _COLORS[(number - 1) % len(_COLORS)]
        _frame(draw, (left, top, right, bottom), f" person {number} ({person.score:.0%}) ", color, font)
    _save(sheet, path)


def _on_target(person: Found, canvas: Canvas, factor: int) -> tuple[float, float, float, float]:
    sides = (*canvas.scaled, *canvas.scaled)
    moved = (*canvas.offset, *canvas.offset)
    most = (*canvas.target, *canvas.target)
    places = zip(person.box, sides, moved, most, strict=True)
    left, top, right, bottom = (min(max(edge * side - by, 0), end) * factor for edge, side, by, end in places)
    return left, top, right, bottom


def _frame(
    draw: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    label: str,
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    left, top, right, bottom = box
    draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=3)
    corner = (left + 4, top + 4)
    draw.rectangle(draw.textbbox(corner, label, font=font), fill=color)
    draw.text(corner, label, font=font, fill="white")


def _save(sheet: Image.Image, path: Path) -> None:
    drawn = BytesIO()
    sheet.save(drawn, format="PNG")
    try:
        write(path, drawn.getvalue())
    except OSError as error:
        raise RequestError(
            f"cannot write {path}: {error.strerror or error}", field="preview", hint="name a file in a writable folder"
        ) from error


def _check_path(path: Path, media: Media) -> None:
    hint = "such as --preview who.png"
    if path.suffix.lower() != ".png":
        raise RequestError(f"{str(path)!r} does not end in .png", field="preview", hint=hint)
    if path.resolve() in {
        source.resolve() for source in (media.image, *media.images, *media.masks, *_source(media)) if source is not None
    }:
        raise RequestError(f"{path} is an input of the request and would be overwritten", field="preview", hint=hint)


def _source(media: Media) -> tuple[Path, ...]:
    return () if media.source is None else (media.source.path,)
