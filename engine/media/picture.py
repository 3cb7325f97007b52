"""Read picture files as upright RGB pixels."""

from __future__ import annotations

import io
import struct
import warnings as python_warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from engine.errors import RequestError
from engine.media.picture_color import ToRgb, to_srgb
from engine.media.picture_files import (
    DAMAGED,
    FORMATS,
    SMALLER,
    admit_heic,
    check_icon,
    check_pixels,
    is_heic,
    is_jpeg,
    last_pass_begun,
    other_colours,
    read_head,
    unknown,
)

#: Share of a JPEG's pixels that may be missing at its end.
MISSING = 0.05

# Pillow's warnings about a stranger's file would appear in the user's terminal; PictureInfo has those that matter.
python_warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")

_ORIENTATION = 0x0112
_SUBFILE, _REDUCED = 254, 1
#: Pixels that are converted at a time, so that no further copy of the whole picture is needed.
_STRIP = 2**20
#: Formats whose first image is the photograph; previews, depth maps or the rest of a burst follow.
_FIRST_IS_IT = ("MPO", "HEIF", "PSD")
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(frozen=True)
class PictureInfo:
    """What is known about a picture after decoding it."""

    #: (width, height) of the upright picture.
    size: tuple[int, int]
    #: What may surprise the owner, one sentence each.
    warnings: tuple[str, ...] = ()


def look_at(path: Path, *, field: str, max_pixels: int | None = None, mask: bool = False) -> PictureInfo:
    """Check a picture as `read_picture` (or `read_mask`) would, and return its size and warnings.

    It is decoded, because only this shows whether it is complete and upright; a JPEG at an eighth of its size.
    Raises as `read_picture` does.
    """

    with _decoded(path, field, max_pixels, small=True) as decoded:
        if mask:
            return PictureInfo(decoded.size, decoded.warnings)
        _, warning = to_srgb(decoded.image)
        colours = "" if decoded.image.info.get("icc_profile") else other_colours(path, decoded.head, decoded.image.info)
        if colours:
            warning = (
                f"the picture says that its colours are not sRGB ({colours}) and has no ICC profile: they are "
                "taken as sRGB and may look paler or darker; save it as sRGB"
            )
        return PictureInfo(decoded.size, (*decoded.warnings, *filter(None, [warning])))


def read_picture(path: Path, *, field: str, max_pixels: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a picture to uint8 sRGB (height, width, 3), turned upright by its EXIF orientation.

    Embedded ICC profiles of RGB, grey and CMYK pictures are applied. Transparency is blended with white; palettes are
    resolved; 16-bit grey is scaled by 1/257; CMYK without a profile uses Pillow's simple formula. A share of at most
    `MISSING` of a JPEG's pixels may be missing at the end; they repeat the row above. Raises RequestError about `field`
    for a picture that cannot be read, for several pictures, or for more than `max_pixels`.
    """
    with _decoded(path, field, max_pixels) as decoded:
        return _upright(decoded, to_srgb(decoded.image)[0], paper=255)


def read_mask(path: Path, *, field: str, max_pixels: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a mask picture to uint8 grey (height, width), upright; transparency is blended with black.

    Its values are used as they are; a colour profile is ignored. Raises as `read_picture` does.
    """
    with _decoded(path, field, max_pixels) as decoded:
        return _upright(decoded, None, paper=0)


# --- opening ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decoded:
    image: Image.Image
    head: bytes
    #: (width, height) of the upright picture, and the EXIF orientation of the stored pixels.
    size: tuple[int, int]
    orientation: int
    #: For the rows at the bottom, from the last one upwards: the first column with missing pixels.
    missing: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


@contextmanager
def _decoded(path: Path, field: str, max_pixels: int | None, *, small: bool = False) -> Iterator[_Decoded]:
    """Open, check and decode. `small`: the pixels are not used, and may be fewer; the size is still the full one."""
    # Pillow's decoders raise many types of errors; only its size limits have their own.
    head = b""
    try:
        head = read_head(path)
        formats: tuple[str, ...] = FORMATS
        if is_heic(head):
            admit_heic(field)
            formats = ("HEIF",)
        check_icon(path, head, field, max_pixels)
        with Image.open(path, formats=formats) as image:
            yield _load(image, path, head, field, max_pixels, small=small)
    except RequestError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RequestError(
            "the picture has too many pixels", field=field, hint=SMALLER, code="picture_too_large"
        ) from error
    except UnidentifiedImageError as error:
        what, hint = unknown(head)
        raise RequestError(what, field=field, hint=hint, code="picture_unreadable") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, RuntimeError) as error:
        raise RequestError(
            f"the picture cannot be read: {error}", field=field, hint=DAMAGED, code="picture_unreadable"
        ) from error


def _load(
    image: Image.Image, path: Path, head: bytes, field: str, max_pixels: int | None, *, small: bool = False
) -> _Decoded:
    _admit(image, field, max_pixels)
    size = image.size
    missing: tuple[int, ...] = ()
    warnings: list[str] = []
    if small and is_jpeg(head):
        image.draft(None, (max(1, size[0] // 8), max(1, size[1] // 8)))
    try:
        image.load()
    except OSError:
        if not is_jpeg(head):
            raise
        image, missing, warning = _repaired_jpeg(path, field, max_pixels)
        warnings.append(warning)
    else:
        # The decoded size may differ from the one at the beginning of the file.
        size = size if is_jpeg(head) else image.size
        check_pixels(size, field, max_pixels)
    _check_mode(image, field)
    try:
        # Read after decoding: Pillow rotates a TIFF while it decodes it, and then sets the orientation to 1.
        orientation = image.getexif().get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error):
        warnings.append("the picture's EXIF data cannot be read: it is used as it is stored, without rotation")
        orientation = 1
    if orientation not in range(1, 9):
        orientation = 1
    upright = size[::-1] if orientation >= 5 else size
    return _Decoded(image, head, (upright[0], upright[1]), orientation, missing, tuple(warnings))


def _admit(image: Image.Image, field: str, max_pixels: int | None) -> None:
    check_pixels(image.size, field, max_pixels)
    # is_animated, not n_frames: counting a TIFF's pages would read all of them.
    if image.format not in _FIRST_IS_IT and getattr(image, "is_animated", False):
        several = "the picture has several pages" if image.format == "TIFF" else "the picture is animated"
        hint = "save one page of it as a PNG" if image.format == "TIFF" else "save one frame of it as a PNG"
        raise RequestError(several, field=field, hint=hint, code="picture_unsupported")
    if image.format == "TIFF" and _REDUCED & int(getattr(image, "tag_v2", {}).get(_SUBFILE, 0)):
        raise RequestError(
            "the file begins with a small preview of the picture, like cameras' raw files",
            field=field,
            hint="develop it and save it as a JPEG or PNG",
            code="picture_unsupported",
        )


def _check_mode(image: Image.Image, field: str) -> None:
    if image.mode in ("F", "LAB"):
        raise _unsupported("floating-point" if image.mode == "F" else "CIE Lab", field)
    if image.mode == "I":
        least, most = image.getextrema()
        if least < 0 or most > 65535:  # type: ignore[operator]
            raise _unsupported("32-bit", field)


def _unsupported(kind: str, field: str) -> RequestError:
    what = f"pictures with {kind} pixels are not supported"
    return RequestError(what, field=field, hint="save it as 8-bit RGB", code="picture_unsupported")


# --- JPEG that ends too early -----------------------------------------------------------------------------------------


def _repaired_jpeg(path: Path, field: str, max_pixels: int | None) -> tuple[Image.Image, tuple[int, ...], str]:
    """Decode a truncated JPEG; return it, which pixels are missing, and a warning.

    Raises RequestError if more than `MISSING` is missing, and Pillow's error if the file is damaged in another way.
    """
    data = path.read_bytes()
    image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=("JPEG", "MPO"))
    _admit(image, field, max_pixels)
    image.load()
    hint = f"get the whole file; up to {MISSING:.0%} of a JPEG may be missing"
    if not last_pass_begun(data):
        what = "the JPEG ends too early: all of its rows lack detail or colour, since later passes are missing"
        raise RequestError(what, field=field, hint=hint, code="picture_unreadable")
    missing = _missing(image)
    area = sum(image.width - first for first in missing)
    if area > MISSING * image.width * image.height:
        what = f"the JPEG ends too early: more than {MISSING:.0%} of its pixels are missing"
        raise RequestError(what, field=field, hint=hint, code="picture_unreadable")
    if not missing:
        return image, (), "the JPEG ends too early, but all of its rows are complete; it is used as it is"
    # If colours are stored at half size, grey extends two pixels into the pixels that exist.
    wide = (*missing, image.width, image.width)[: image.height - 1]
    missing = tuple(max(0, min(wide[max(0, row - 2) : row + 1]) - 2) for row in range(len(wide)))
    rows = f"{len(missing)} of its {image.height} rows are not complete and repeat what is above them"
    return image, missing, f"the JPEG ends too early: {rows}; get the whole file"


def _missing(image: Image.Image) -> tuple[int, ...]:
    """Return the first column without data, for the rows at the bottom, from the last one upwards.

    libjpeg fills missing data with zeros, which are middle grey in every mode, at the right end of each row.
    """
    first_columns: list[int] = []
    area, most = 0, MISSING * image.width * image.height + image.width
    for row in range(image.height - 1, -1, -1):
        pixels = np.asarray(image.crop((0, row, image.width, row + 1)), np.int16).reshape(image.width, -1)
        filled = np.flatnonzero((np.abs(pixels - 128) > 1).any(axis=1))
        first = int(filled[-1]) + 1 if filled.size else 0
        if first == image.width or area > most:
            break
        first_columns.append(first)
        area += image.width - first
    return tuple(first_columns)


# --- pixels -----------------------------------------------------------------------------------------------------------


def _upright(decoded: _Decoded, colours: ToRgb | None, paper: int) -> npt.NDArray[np.uint8]:
    """Convert to uint8 (height, width, 3), or without `colours` to grey (height, width), strip by strip."""
    image = decoded.image
    shape = (decoded.size[1], decoded.size[0], 3) if colours else (decoded.size[1], decoded.size[0])
    result = np.empty(shape, np.uint8)
    stored = _stored(result, decoded.orientation)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(image.height, top + rows)
        part = _flat(image.crop((0, top, image.width, bottom)), colours, paper)
        stored[top:bottom] = np.asarray(part if colours else part.convert("L"))
    for row, first in enumerate(reversed(decoded.missing), start=image.height - len(decoded.missing)):
        stored[row, first:] = stored[row - 1, first:]
    return result


def _stored(upright: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return a view of an upright picture with the pixels in the order of that EXIF orientation."""
    across = upright.swapaxes(0, 1)
    match orientation:
        case 2:
            return upright[:, ::-1]
        case 3:
            return upright[::-1, ::-1]
        case 4:
            return upright[::-1]
        case 5:
            return across
        case 6:
            return across[::-1]
        case 7:
            return across[::-1, ::-1]
        case 8:
            return across[:, ::-1]
    return upright


def _flat(part: Image.Image, colours: ToRgb | None, paper: int) -> Image.Image:
    """Convert a strip to RGB: first colours, then blend transparent pixels with the paper."""
    convert = colours or (lambda picture: picture.convert("RGB"))
    if part.mode.startswith("I;16") or part.mode == "I":
        values = np.asarray(part).astype(np.uint32)
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = convert(Image.fromarray(((values + 128) // 257).astype(np.uint8)))
        clear = part.info.get("transparency")
        if isinstance(clear, int):
            grey.paste((paper,) * 3, mask=Image.fromarray(np.where(values == clear, 255, 0).astype(np.uint8)))
        return grey
    if part.mode in _ALPHA or "transparency" in part.info:
        pixels = part.convert("RGBA")
        visible = convert(part.convert("L") if part.mode == "LA" else pixels.convert("RGB"))
        visible.putalpha(pixels.getchannel("A"))
        return Image.alpha_composite(Image.new("RGBA", pixels.size, (paper,) * 3), visible).convert("RGB")
    return convert(part if part.mode in ("L", "CMYK") else part.convert("RGB"))
