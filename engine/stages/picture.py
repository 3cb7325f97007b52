"""Picture file -> upright RGB pixels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from engine.errors import RequestError

#: Formats that are opened. EPS, PDF and the like run foreign programs or hold no pixels, and stay closed.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA")

_ORIENTATION = 0x0112
_HINT = "give a JPEG, PNG, WebP, AVIF or TIFF picture"
_LARGE = "scale it down; the network sees far fewer pixels anyway"


def picture_size(path: Path, *, field: str, max_pixels: int | None = None) -> tuple[int, int]:
    """Return (width, height) of a picture once it is turned upright. Raises RequestError about `field`.

    Reads the header alone, save for a PNG without early EXIF, whose pixels are decoded since EXIF may follow them.
    """
    with _open(path, field, max_pixels) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def read_picture(path: Path, *, field: str, max_pixels: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a picture to uint8 RGB (height, width, 3), turned upright by its EXIF orientation.

    Transparency is laid over white; palettes are resolved; 16-bit grey is scaled by 1/257; CMYK goes through its
    embedded ICC profile where there is one that can be read. RGB profiles are left unapplied, as the reference does.
    Raises RequestError about `field` for what cannot be read, holds several pictures or exceeds `max_pixels`.
    """
    with _open(path, field, max_pixels) as image:
        return np.array(_rgb(ImageOps.exif_transpose(image), field))


def read_mask(path: Path, *, field: str, max_pixels: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a mask picture to uint8 grey (height, width), upright; transparency is laid over black.

    Raises RequestError as `read_picture` does.
    """
    with _open(path, field, max_pixels) as image:
        return np.array(_rgb(ImageOps.exif_transpose(image), field, paper="black").convert("L"))


@contextmanager
def _open(path: Path, field: str, max_pixels: int | None) -> Iterator[Image.Image]:
    # Pillow's decoders raise whatever their format's parser meets; only its limits have names of their own.
    try:
        with Image.open(path, formats=FORMATS) as image:
            _admit(image, field, max_pixels)
            yield image
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(
            "the picture has too many pixels", field=field, hint=_LARGE, code="picture_too_large"
        ) from error
    except UnidentifiedImageError as error:
        raise RequestError(
            "not a picture of a known format", field=field, hint=_HINT, code="picture_unreadable"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error) as error:
        raise RequestError(
            f"the picture cannot be read: {error}", field=field, hint=_HINT, code="picture_unreadable"
        ) from error


def _admit(image: Image.Image, field: str, max_pixels: int | None) -> None:
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise RequestError(
            f"the picture has {width} x {height} pixels, more than the {max_pixels} allowed",
            field=field,
            hint=_LARGE,
            code="picture_too_large",
        )
    # An MPO is a camera's JPEG with a preview or a depth map behind it; the first picture is the photograph.
    count = getattr(image, "n_frames", 1)
    if image.format != "MPO" and count > 1:
        kind = "has several pages" if image.format == "TIFF" else "is animated"
        what, hint = f"the picture {kind} ({count} frames)", "save one frame of it as a PNG"
        raise RequestError(what, field=field, hint=hint, code="picture_unsupported")


def _rgb(image: Image.Image, field: str, paper: str = "white") -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_wide(image, field)
    if image.mode in ("F", "LAB"):
        kind = "floating-point" if image.mode == "F" else "CIE Lab"
        raise _unsupported(kind, field)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, paper), pixels).convert("RGB")
    return image.convert("RGB")


def _from_wide(image: Image.Image, field: str) -> Image.Image:
    # Pillow's own conversion clips at 255 instead of scaling.
    values = np.asarray(image)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise _unsupported("32-bit", field)
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8)).convert("RGB")


def _unsupported(kind: str, field: str) -> RequestError:
    what = f"pictures with {kind} pixels are not read"
    return RequestError(what, field=field, hint="save it as 8-bit RGB", code="picture_unsupported")


def _from_cmyk(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a broken profile is passed over, as viewers do
        if converted is not None:
            return converted
    return image.convert("RGB")
