"""Colour profiles (ICC) of pictures -> sRGB."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

#: Largest profile, bytes; those of printing presses have two million.
_LARGEST = 16 * 2**20
#: Levels of each colour at which a profile is compared with sRGB.
_STEPS = 17
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")

#: A picture without transparency, of mode "L", "RGB" or "CMYK" -> sRGB in mode "RGB".
ToRgb = Callable[[Image.Image], Image.Image]


def to_srgb(image: Image.Image) -> tuple[ToRgb, str]:
    """Return a function that converts colours of `image` to sRGB, and a warning; "" if its profile is valid or absent.

    The embedded ICC profile is applied with the perceptual intent. A profile that cannot be read, or is for another
    kind of picture, is ignored with a warning, as viewers do. One that differs from sRGB by at most one level is not
    applied: bytes of sRGB pictures are unchanged.
    """
    data = image.info.get("icc_profile")
    if not data:
        return _plain, ""
    own = "CMYK" if image.mode == "CMYK" else "GRAY" if image.mode in _GREY else "RGB"
    try:
        if len(data) > _LARGEST:
            raise ValueError("it is too large")
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        space = str(profile.profile.xcolor_space).strip()
        # A grey picture with an RGB profile: its levels are colours with three equal parts.
        if space != own and not (own == "GRAY" and space == "RGB"):
            return _plain, f"the picture's colour profile is for {space}, the picture is {own}: it was ignored"
        mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[space]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        if mode != "CMYK" and _changes_nothing(transform, mode):
            return _plain, ""
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
        return _plain, "the picture's colour profile cannot be read and was ignored: colours may be slightly wrong"

    def apply(part: Image.Image) -> Image.Image:
        converted = ImageCms.applyTransform(part if part.mode == mode else part.convert(mode), transform)
        assert converted is not None
        return converted

    return apply, ""


def _plain(part: Image.Image) -> Image.Image:
    return part.convert("RGB")


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    if mode == "L":
        probe = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        steps = np.linspace(0, 255, _STEPS).round().astype(np.uint8)
        probe = Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3))
    converted = ImageCms.applyTransform(probe, transform)
    assert converted is not None
    return bool(np.abs(np.asarray(converted, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max() <= 1)
