"""What a picture file is, by its first bytes; and what has to be known of some kinds before Pillow opens them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import RequestError

#: Formats that are opened. EPS, PDF and the like run foreign programs or hold no pixels, and stay closed; so do formats
#: of films. HEIF comes with an extra.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "TGA"),
    *("ICO", "QOI", "PCX", "SGI", "DDS", "DIB", "PSD"),
)
#: Bytes at the beginning of a file that are looked at.
HEAD = 2**16
KNOWN = "give a JPEG, PNG, WebP, AVIF, TIFF or HEIC picture"
#: For files of a known format: their owner has a picture of that format, and it is not whole.
DAMAGED = "the file is damaged or not complete: get it again from where it came from"
SMALLER = "scale it down; the network sees far fewer pixels anyway"

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF = {b"mif1", b"msf1", b"mif2"}
_VIDEO = {b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"M4A ", b"dash"}
#: ISO/IEC 23091-2: primaries of sRGB, and transfer functions that are its own or near it; 2 is "not stated".
_PRIMARIES, _TRANSFERS = {1, 2}, {1, 2, 6, 13, 14, 15}
#: An icon file has a dozen sizes.
_MOST_ICONS = 256
_MOST_CHUNKS = 256

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
_RARE = "get it again from where it came from, or open it in a viewer and save it anew"
_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"%PDF", "a PDF document; save its page as a PNG"),
    (b"%!PS", "a PostScript file; save it as a PNG"),
    (b"\xff\x0a", "a JPEG XL picture, which is not read; save it as a PNG"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture, which is not read; save it as a PNG"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM); save one frame of it as a PNG"),
    (b"ID3", "a sound file; the voice belongs into `audio`"),
    (b"OggS", "a sound file; the voice belongs into `audio`"),
    (b"fLaC", "a sound file; the voice belongs into `audio`"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
)


def read_head(path: Path) -> bytes:
    """Return the beginning of a file. Raises OSError."""
    with path.open("rb") as file:
        return file.read(HEAD)


def is_heic(head: bytes) -> bool:
    """Say whether a file is a HEIC picture (HEVC in HEIF), which Pillow reads with a plugin alone."""
    major, brands = _brands(head)
    return major in _HEIC or (major in _HEIF and bool(brands & _HEIC))


def is_jpeg(head: bytes) -> bool:
    """Say whether a file begins as a JPEG does."""
    return head.startswith(b"\xff\xd8\xff")


def admit_heic(field: str) -> None:
    """Make Pillow read HEIC. Raises RequestError where the package for it is not installed."""
    if find_spec("pillow_heif") is None:
        raise RequestError(
            "the picture is HEIC, as iPhones save it, and the package 'pillow-heif' that reads it is not installed",
            field=field,
            hint="pip install 'multitalk-engine[heic]', or save the picture as a JPEG or PNG",
            code="missing_package",
        )
    import pillow_heif

    # Twice is harmless: it puts the same functions into the same tables.
    pillow_heif.register_heif_opener(thumbnails=False)


def unknown(head: bytes) -> tuple[str, str]:
    """Return what a file is that Pillow does not open, and what would work."""
    if is_heic(head):
        return "the HEIC cannot be read: it is damaged, or of a rare kind", _RARE
    for mark, kind in _KNOWN:
        if head.startswith(mark) and (kind != "WebP" or head[8:12] == b"WEBP"):
            return f"the {kind} cannot be read: it is damaged at its beginning, or of a rare kind", _RARE
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
    if count > _MOST_ICONS:
        what = f"the icon file holds {count} pictures"
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
    """Return in what way, other than by an ICC profile, a file says that its colours are not sRGB; "" if it does not.

    PNG: cICP, cHRM and gAMA, of which an sRGB chunk makes the last two void; AVIF and HEIC: nclx.
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
    """Say whether the last pass over a progressive JPEG has begun, so that all of its rows are there.

    Each coefficient of each component then had a scan down to its last bit (ITU-T T.81, annex G). In a baseline JPEG a
    scan has all bits of its components, which is nearly always all of them.
    """
    components: dict[int, list[int]] = {}
    baseline = False
    at = 2
    while (at := _next_marker(data, at)) >= 0 and at + 4 <= len(data):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker in (0xC0, 0xC1, 0xC2):
            baseline = marker != 0xC2
            # For each coefficient the number of bits still to come; 99: nothing has come yet.
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
    """Return where the next marker of a segment begins, -1 where there is none."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        # Stuffing, restarts, filling bytes, and markers without a segment.
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
    if isinstance(points, tuple) and any(abs(given - own) > 0.01 for given, own in zip(points, srgb, strict=False)):
        return "cHRM"
    return ""


def _chunk(path: Path, name: bytes) -> bytes:
    """Return what stands in a PNG's chunk before its pixels, b"" where there is none."""
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(_MOST_CHUNKS):
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
