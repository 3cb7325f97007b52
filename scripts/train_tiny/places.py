"""Where the cartoon people are: backdrops, and the light of the day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from scripts.train_tiny.hair import mix

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Light:
    """The light of a time of day: gains of red, green and blue, and the sky's colours from top to bottom."""

    gain: tuple[float, float, float]
    near: tuple[float, float, float]
    """The gains for people, who are lit from the camera's side as well."""
    sky: tuple[Colour, Colour]
    lamps: bool

    def tint(self, colour: Colour) -> Colour:
        """Return how a colour looks in this light."""
        return _gained(colour, self.gain)

    def on_people(self, colour: Colour) -> Colour:
        """Return how a colour of a person looks in this light."""
        return _gained(colour, self.near)


LIGHTS: dict[str, Light] = {
    "day": Light((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), ((132, 190, 240), (214, 236, 250)), False),
    "evening": Light((1.0, 0.76, 0.58), (1.0, 0.90, 0.80), ((112, 88, 150), (252, 170, 104)), True),
    "night": Light((0.36, 0.42, 0.66), (0.78, 0.74, 0.84), ((16, 22, 56), (48, 62, 110)), True),
}

Painter = Callable[[ImageDraw.ImageDraw, int, int, np.random.Generator, Light], None]


def backdrop(place: str, light: Light, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return the RGB picture of a place, `size` wide and high, a little out of focus and paler than people are."""
    width, height = size
    picture = Image.new("RGB", size, light.sky[1])
    PLACES[place](ImageDraw.Draw(picture), width, height, rng, light)
    soft = picture.filter(ImageFilter.GaussianBlur(height / 110))
    return Image.blend(soft, Image.new("RGB", size, mix(light.sky[1], light.tint((214, 210, 206)), 0.7)), 0.16)


def _park(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    _sky(pen, w, h, rng, light)
    far, near = light.tint((130, 186, 128)), light.tint((106, 170, 92))
    x = rng.uniform(-0.2, 0.5) * w
    pen.ellipse((x - 0.5 * w, 0.58 * h, x + 0.6 * w, 1.7 * h), fill=far)
    pen.ellipse((0.3 * w, 0.64 * h, 1.5 * w, 1.8 * h), fill=near)
    pen.rectangle((0, 0.86 * h, w, h), fill=near)
    for _ in range(int(rng.integers(1, 4))):
        x, y, r = rng.uniform(0, w), rng.uniform(0.42, 0.6) * h, rng.uniform(0.10, 0.17) * h
        pen.rectangle((x - 0.14 * r, y, x + 0.14 * r, y + 2.4 * r), fill=light.tint((120, 84, 56)))
        for dx, dy in ((-0.6, 0.2), (0.6, 0.2), (0, -0.4)):
            _dot(pen, x + dx * r, y + dy * r, r, light.tint((74, 146, 86)))


def _beach(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    _sky(pen, w, h, rng, light)
    horizon = rng.uniform(0.45, 0.6) * h
    pen.rectangle((0, horizon, w, h), fill=light.tint((70, 152, 196)))
    pen.ellipse((-0.4 * w, horizon + 0.2 * h, 1.3 * w, 2.2 * h), fill=light.tint((240, 214, 160)))
    x = rng.uniform(0, 0.8) * w
    sail = [(x, horizon), (x + 0.05 * w, horizon), (x + 0.025 * w, horizon - 0.16 * h)]
    pen.polygon(sail, fill=light.tint((250, 248, 240)))


def _hills(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    _sky(pen, w, h, rng, light)
    for row, colour in ((0.30, (148, 158, 190)), (0.44, (118, 134, 168))):
        x = rng.uniform(-0.3, 0) * w
        while x < w:
            wide, high = rng.uniform(0.4, 0.7) * max(w, h), rng.uniform(0.0, 0.15) * h
            peak = (x + wide / 2, row * h - high)
            pen.polygon([(x, 1.1 * h), peak, (x + wide, 1.1 * h)], fill=light.tint(colour))
            snow = [(peak[0] + s * 0.07 * wide, peak[1] + 0.11 * h) for s in (-1, 1)]
            pen.polygon([peak, *snow], fill=light.tint((246, 248, 252)))
            x += 0.6 * wide
    pen.ellipse((-0.5 * w, 0.74 * h, 1.5 * w, 1.9 * h), fill=light.tint((150, 184, 130)))


def _city(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    _sky(pen, w, h, rng, light)
    x = -0.02 * w
    while x < w:
        wide, top = rng.uniform(0.11, 0.18) * max(w, h), rng.uniform(0.18, 0.55) * h
        wall = ((152, 160, 184), (178, 158, 150), (130, 148, 160))[int(rng.integers(3))]
        pen.rectangle((x, top, x + wide, h), fill=light.tint(wall))
        pane = wide / 3.6
        for row in np.arange(top + 0.8 * pane, h, 2.2 * pane):
            for column in (0.6, 2.1):
                lit = light.lamps and rng.random() < 0.55
                colour = (250, 214, 130) if lit else light.tint((206, 222, 236))
                pen.rectangle((x + column * pane, row, x + (column + 0.8) * pane, row + 1.1 * pane), fill=colour)
        x += wide * 1.04


def _room(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    wall = _choose(rng, ((238, 220, 196), (196, 214, 222), (214, 226, 200), (232, 204, 204), (210, 200, 226)))
    pen.rectangle((0, 0, w, h), fill=_lamplit(light, wall))
    pen.rectangle((0, 0.80 * h, w, h), fill=_lamplit(light, (166, 120, 84)))
    pen.rectangle((0, 0.78 * h, w, 0.81 * h), fill=_lamplit(light, (244, 240, 232)))
    x, y = rng.uniform(0.05, 0.6) * w, rng.uniform(0.06, 0.14) * h
    wide, high = 0.34 * min(w, h), 0.42 * min(w, h)
    pen.rectangle((x - 0.06 * wide, y - 0.06 * wide, x + 1.06 * wide, y + high), fill=_lamplit(light, (250, 248, 242)))
    for column in (0, 0.53):
        pane = (x + column * wide, y, x + (column + 0.47) * wide, y + 0.93 * high)
        pen.rectangle(pane, fill=mix(light.sky[0], light.sky[1], 0.5))
    x = (x + rng.uniform(0.42, 0.6) * w) % w
    frame = _choose(rng, ((180, 130, 70), (70, 74, 84), (236, 232, 224)))
    side = 0.13 * min(w, h)
    pen.rectangle((x - side, 0.16 * h, x + side, 0.16 * h + 1.7 * side), fill=_lamplit(light, frame))
    paint = _choose(rng, ((222, 120, 96), (96, 148, 178), (232, 192, 88)))
    pen.rectangle(
        (x - 0.8 * side, 0.16 * h + 0.2 * side, x + 0.8 * side, 0.16 * h + 1.5 * side), fill=_lamplit(light, paint)
    )


def _library(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    pen.rectangle((0, 0, w, h), fill=_lamplit(light, (112, 78, 56)))
    shelf = h / 3
    for row in range(3):
        x = 0.01 * w
        while x < w:
            wide, high = rng.uniform(0.18, 0.34) * shelf, rng.uniform(0.6, 0.84) * shelf
            book = _choose(
                rng, ((176, 74, 66), (72, 112, 150), (96, 140, 98), (212, 170, 92), (146, 106, 156), (220, 206, 180))
            )
            if rng.random() < 0.9:
                bottom = (row + 0.92) * shelf
                pen.rectangle((x, bottom - high, x + wide, bottom), fill=_lamplit(light, book))
            x += wide * 1.12
        pen.rectangle((0, (row + 0.92) * shelf, w, (row + 1) * shelf), fill=_lamplit(light, (150, 108, 76)))


def _cafe(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    low, high = _choose(rng, ((128, 152, 142), (176, 116, 92), (104, 122, 148))), (240, 228, 206)
    pen.rectangle((0, 0, w, h), fill=_lamplit(light, high))
    pen.rectangle((0, 0.55 * h, w, h), fill=_lamplit(light, low))
    for x in np.arange(rng.uniform(0.02, 0.1) * w, w, 0.16 * max(w, h)):
        pen.rectangle((x, 0.55 * h, x + 0.006 * w, h), fill=_lamplit(light, mix(low, (0, 0, 0), 0.2)))
    for x in np.arange(rng.uniform(0.05, 0.2), 1.0, 0.3) * w:
        r = 0.07 * min(w, h)
        pen.rectangle((x - 0.05 * r, 0, x + 0.05 * r, 0.10 * h), fill=_lamplit(light, (60, 54, 54)))
        pen.pieslice(
            (x - 1.4 * r, 0.10 * h, x + 1.4 * r, 0.10 * h + 2.4 * r), 180, 360, fill=_lamplit(light, (70, 66, 70))
        )
        lamp = (255, 230, 150) if light.lamps else _lamplit(light, (250, 246, 226))
        _dot(pen, x, 0.10 * h + 1.2 * r, 0.5 * r, lamp)


def _studio(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    ends = [_choose(rng, _STUDIO) for _ in range(2)]
    for row in range(h):
        pen.line((0, row, w, row), fill=light.tint(mix(ends[0], ends[1], row / h)))
    for _ in range(int(rng.integers(4, 10))):
        glow = light.tint(mix(_choose(rng, _STUDIO), (255, 255, 255), 0.3))
        _dot(pen, rng.uniform(0, w), rng.uniform(0, h), rng.uniform(0.04, 0.13) * h, glow)


_STUDIO: tuple[Colour, ...] = (
    (96, 144, 196), (226, 150, 116), (150, 190, 150), (196, 150, 200),
    (240, 206, 130), (110, 122, 160), (196, 206, 214),
)  # fmt: skip

#: Name in a prompt -> painter.
PLACES: dict[str, Painter] = {
    "in a park": _park,
    "at the beach": _beach,
    "in the mountains": _hills,
    "in the city": _city,
    "in a room": _room,
    "in a library": _library,
    "in a café": _cafe,
    "in a studio": _studio,
}


def _sky(pen: ImageDraw.ImageDraw, w: int, h: int, rng: np.random.Generator, light: Light) -> None:
    for row in range(h):
        pen.line((0, row, w, row), fill=mix(light.sky[0], light.sky[1], min(1.0, 1.4 * row / h)))
    x, y, r = rng.uniform(0.05, 0.95) * w, rng.uniform(0.08, 0.2) * h, 0.055 * min(w, h)
    _dot(pen, x, y, r, (244, 240, 214) if light.sky[0][0] < 60 else (255, 232, 140))
    if light.sky[0][0] < 60:
        for _ in range(12):
            _dot(pen, rng.uniform(0, w), rng.uniform(0, 0.5) * h, 0.006 * h, (226, 230, 246))
        return
    cloud = mix(light.tint((255, 255, 255)), light.sky[1], 0.25)
    for _ in range(int(rng.integers(1, 4))):
        x, y, r = rng.uniform(0, w), rng.uniform(0.08, 0.34) * h, rng.uniform(0.03, 0.06) * h
        for dx in (-1.4, 0, 1.4):
            _dot(pen, x + dx * r, y - (dx == 0) * 0.6 * r, 1.2 * r, cloud)


def _gained(colour: Colour, gain: tuple[float, float, float]) -> Colour:
    red, green, blue = (min(255, round(part * by)) for part, by in zip(colour, gain, strict=True))
    return red, green, blue


def _lamplit(light: Light, colour: Colour) -> Colour:
    """Return an indoor colour: lamps keep evenings and nights from going all the way."""
    return mix(colour, light.tint(colour), 0.75)


def _choose(rng: np.random.Generator, colours: tuple[Colour, ...]) -> Colour:
    return colours[int(rng.integers(len(colours)))]


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour) -> None:
    pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
