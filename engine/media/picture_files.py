"""The kind of a picture file by its first bytes, and checks of some kinds before Pillow opens them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import RequestError

#: Formats that are opened. EPS, PDF and similar formats run other programs or have no pixels, and are rejected; so are
#: video formats. HEIF needs an extra.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA"),
    *("ICO", "QOI", "PCX", "SGI", "DDS", "DIB", "PSD"),
)
#: Bytes at the beginning of a file that are examined.
HEAD = 2**16
KNOWN = "give a JPEG, PNG, WebP, AVIF, TIFF or HEIC picture"
#: Hint for files of a known format, which are damaged.
DAMAGED = "the file is damaged or incomplete: get it again from its source"
SMALLER = "scale it down; the network uses far fewer pixels anyway"

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF = {b"mif1", b"msf1", b"mif2"}
_VIDEO = {b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"M4A ", b"dash"}
#: ISO/IEC 23091-2: primaries of sRGB, and transfer functions equal or close to its own; 2 is "not specified".
_PRIMARIES, _TRANSFERS = {1, 2}, {1, 2, 6, 13, 14, 15}
#: Icon files usually have about a dozen sizes.
_MAX_ICONS = 256
_MAX_CHUNKS = 256

_KNOWN = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"8BPS", "PSD"),
    (b"BM", "BMP"),
)
_RARE = "get it again from its source, or open it in a viewer and save it again"
_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document; save its page as a PNG"),
    (b"%!PS", "a PostScript file; save it as a PNG"),
    (b"\xff\x0a", "a JPEG XL picture, which is not supported; save it as a PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture, which is not supported; save it as a PNG"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM); save one frame of it as a PNG"),
    (b"ID3", "a sound file; the voice belongs in `audio`"),
    (b"OggS", "a sound file; the voice belongs in `audio`"),
    (b"fLaC", "a sound file; the voice belongs in `audio`"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
)


def read_head(path: Path) -> bytes:
    """Return the first HEAD bytes of a file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD)


def is_heic(head: bytes) -> bool:
    """Return whether a file is a HEIC picture (HEVC in HEIF), which Pillow reads only with a plugin."""
    major, brands = _brands(head)
    return major in _HEIC or (major in _HEIF and bool(brands & _HEIC))


def is_jpeg(head: bytes) -> bool:
    """Return whether a file begins like a JPEG."""
    return head.startswith(b"\xff\xd8\xff")


def admit_heic(field: str) -> None:
    """Make Pillow read HEIC. Raises RequestError if the package for it is not installed."""
    if find_spec("pillow_heif") is None:
        raise RequestError(
            "the picture is HEIC, the format of iPhones, and the package 'pillow-heif' to read it is not installed",
            field=field,
            hint="pip install 'multitalk-engine[heic]', or save the picture as a JPEG or PNG",
            code="missing_package",
        )
    import pillow_heif

    # Calling it twice is harmless: it registers the same functions again.
    pillow_heif.register_heif_opener(thumbnails=False)


def unknown(head: bytes) -> tuple[str, str]:
    """Return the kind of a file that Pillow cannot open, and a hint."""
    if is_heic(head):
        return "the HEIC cannot be read: it is damaged, or of a rare kind", _RARE
    for mark, kind in _KNOWN:
        if head.startswith(mark) and (kind != "WebP" or head[8:12] == b"WEBP"):
            return f"the {kind} cannot be read: its beginning is damaged, or it is of a rare kind", _RARE
    for mark, what in _MARKS:
        if head.startswith(mark):
            kind, _, hint = what.partition("; ")
            return f"the file is {kind}", hint
    major, _ = _brands(head)
    if major in _VIDEO:
        return "the file is a video or a sound (MP4 or MOV)", "save one frame of a video as a PNG"
    if head.startswith(b"RIFF") and head[8:12] in (b"WAVE", b"AVI "):
        kind = "a sound file" if head[8:12] == b"WAVE" else "a video (AVI)"
        return f"the file is {kind}", "give a picture here"
    text = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "the file is a web page, not a picture", "give the address of the picture itself"
    if b"<svg" in text:
        return "the file is an SVG drawing, which has no pixels", "save it as a PNG"
    return "not a picture of a known format", KNOWN


def check_icon(path: Path, head: bytes, field: str, most: int | None) -> None:
    """Raise RequestError for an icon file whose pictures have more than `most` pixels.

    Pillow decodes while it opens an ICO, and believes the picture inside, not the file's directory.
    """
    if most is None or head[:4] != b"\0\0\1\0":
        return
    count = int.from_bytes(head[4:6], "little")
    if count > _MAX_ICONS:
        what = f"the icon file contains {count} pictures"
        raise RequestError(what, field=field, hint="save one of them as a PNG", code="picture_unsupported")
    with path.open("rb") as file:
        for index in range(count):
            offset = int.from_bytes(head[6 + 16 * index + 12 : 6 + 16 * index + 16], "little")
            file.seek(offset)
            inner = file.read(24)
            if inner.startswith(b"\x89PNG\r\n\x1a\n"):
                width, height = struct.unpack(">II", inner[16:24]) if len(inner) == 24 else (0, 0)
            else:
                width, height = struct.unpack("<ii", inner[4:12]) if len(inner) >= 12 else (0, 0)
                height //= 2
            check_pixels((abs(width), abs(height)), field, most)


def check_pixels(size: tuple[int, int], field: str, most: int | None) -> None:
    """Raise RequestError for more than `most` pixels."""
    if most is not None and size[0] * size[1] > most:
        raise RequestError(
            f"the picture has {size[0]} x {size[1]} pixels, more than the {most} allowed",
            field=field,
            hint=SMALLER,
            code="picture_too_large",
        )


def other_colours(path: Path, head: bytes, info: Mapping[Any, Any]) -> str:
    """Return how a file states, other than by an ICC profile, that its colours are not sRGB; "" if it does not.

    PNG: cICP, cHRM and gAMA (an sRGB chunk overrides the last two); AVIF and HEIC: nclx.
    """
    if head.startswith(b"\x89PNG"):
        return _png_colours(path, info)
    at = head.find(b"colrnclx")
    if at >= 0 and len(head) >= at + 12:
        primaries, transfer = struct.unpack(">HH", head[at + 8 : at + 12])
        if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
            return f"nclx: primaries {primaries}, transfer {transfer}"
    return ""


def last_pass_begun(data: bytes) -> bool:
    """Return whether the last pass of a progressive JPEG has begun, so that all of its rows exist.

    Each coefficient of each component then had a scan down to its last bit (ITU-T T.81, annex G). In a baseline JPEG a
    scan has all bits of its components, nearly always of all components.
    """
    components: dict[int, list[int]] = {}
    baseline = False
    at = 2
    while (at := _next_marker(data, at)) >= 0 and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2):
            baseline = marker != 0xC2
            # Number of missing bits for each coefficient; 99: no scan yet.
            components = {number: [99] * 64 for number in body[6::3]}
        if marker == 0xDA and body:
            for number in body[1 : 1 + 2 * body[0] : 2]:
                at_bits = 1 + 2 * body[0]
                first, last, bits = (
                    (0, 63, 0) if baseline else (body[at_bits], body[at_bits + 1], body[at_bits + 2] & 15)
                )
                for index in range(first, min(last, 63) + 1):
                    components.setdefault(number, [99] * 64)[index] = bits
        at += 2 + length
    return bool(components) and all(not any(left) for left in components.values())


def _next_marker(data: bytes, at: int) -> int:
    """Return the offset of the next marker of a segment, -1 if there is none."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        # Skips stuffing, restarts, fill bytes, and markers without a segment.
        if data[at + 1] not in (0x00, 0x01, 0xFF, 0xD8) and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    return -1


def _png_colours(path: Path, info: Mapping[Any, Any]) -> str:
    cicp = _chunk(path, b"cICP")
    if len(cicp) == 4:
        primaries, transfer = cicp[:2]
        fits = primaries in _PRIMARIES and transfer in _TRANSFERS
        return "" if fits else f"cICP: primaries {primaries}, transfer {transfer}"
    if "srgb" in info:
        return ""
    gamma, points = info.get("gamma"), info.get("chromaticity")
    if isinstance(gamma, float) and abs(gamma - 1 / 2.2) > 0.02:
        return f"gAMA {gamma:.3f}"
    srgb = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
    if isinstance(points, tuple) and any(abs(stated - own) > 0.01 for stated, own in zip(points, srgb, strict=False)):
        return "cHRM"
    return ""


def _chunk(path: Path, name: bytes) -> bytes:
    """Return the content of a PNG's chunk before its pixels (64 bytes at most), b"" if there is none."""
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(_MAX_CHUNKS):
            length, kind = file.read(4), file.read(4)
            if len(kind) < 4 or kind == b"IDAT":
                break
            size = int.from_bytes(length, "big")
            if kind == name:
                return file.read(min(size, 64))
            file.seek(size + 4, 1)
    return b""


def _brands(head: bytes) -> tuple[bytes, set[bytes]]:
    if head[4:8] != b"ftyp":
        return b"", set()
    size = min(int.from_bytes(head[:4], "big"), 1024)
    return head[8:12], {head[at : at + 4] for at in range(16, size - 3, 4)}
