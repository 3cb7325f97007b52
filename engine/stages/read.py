"""Request -> Media -> Inputs: open the addresses, look at their headers, decode them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args
from urllib.parse import unquote, urlsplit

import numpy as np

from engine.base64_text import is_base64, is_medium
from engine.data import Access, AudioType, Fit, Inputs, Media, Plan, Region, Request, Timing
from engine.errors import RequestError
from engine.stages.audio import measure_seconds, read_sound, read_voices, voice_spans
from engine.stages.canvas import apply_canvas, region_masks
from engine.stages.picture import picture_size, read_picture

#: Frames a second beyond which a wish is a slip of the keyboard, and sound in whole AAC packets (21 ms) could no longer
#: end within a frame of the pictures.
MOST_FPS = 60.0
MOST_SEED = 2**63 - 1
#: Letters from which a text that could be base64 is taken for it, where no paths are allowed.
_LEAST_BASE64 = 16


def check_request(request: Request) -> None:
    """Raise RequestError for what is wrong with a request by itself, before anything is opened."""
    if not isinstance(request.prompt, str) or not request.prompt.strip():
        raise _wrong("prompt", "the prompt is empty", "say in a sentence who talks and where")
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text is not None and not _is_text(text):
            raise _wrong(name, "the text holds bytes that are not UTF-8", "give it in UTF-8, whole letters only")
    _check_choice("audio_type", request.audio_type, get_args(AudioType))
    _check_choice("timing", request.timing, get_args(Timing))
    _check_choice("fit", request.fit, get_args(Fit))
    if not _is_whole(request.seed) or not 0 <= request.seed <= MOST_SEED:
        raise _wrong("seed", f"{request.seed!r} is not a seed", f"give a whole number from 0 to {MOST_SEED}")
    if request.frames is not None and (not _is_whole(request.frames) or request.frames < 1):
        raise _wrong("frames", f"{request.frames!r} frames cannot be made", "give a whole number, 1 or more")
    if request.fps is not None and (not _is_finite(request.fps) or not 0 < request.fps <= MOST_FPS):
        hint = f"give a number above 0, at most {MOST_FPS:g}"
        raise _wrong("fps", f"{request.fps!r} frames a second cannot be made", hint)
    if request.filename is not None:
        _check_filename(request.filename)
    if not request.speakers:
        raise _wrong("speakers", "there is no speaker", "give at least one voice")
    for index, speaker in enumerate(request.speakers):
        _check_region(f"speakers[{index}].region", speaker.region)
    if request.frames is None and all(speaker.audio is None for speaker in request.speakers):
        raise _wrong("frames", "nobody speaks, so no voice tells the video's length", "give the number of frames")


def fetch(request: Request, open_address: Callable[..., Path | None], access: Access, into: Path) -> Media:
    """Bring a request's addresses to local files, within `access`, and read what their headers say.

    `open_address` is the hook of that name; it is called with a scheme that `access` allows and, for paths, an
    absolute path without symbolic links below one of its folders. An address without `data:` or `scheme://` at its
    front is a path, and so is `file:///...`. Raises RequestError naming the field.
    """
    check_request(request)
    opened: dict[str, Path] = {}

    def bring(address: str, name: str) -> Path:
        if address not in opened:
            opened[address] = _bring(address, f"request.{name}", open_address, access, into)
        return opened[address]

    image = bring(request.image, "image")
    size = picture_size(image, field="request.image", max_pixels=access.max_pixels)
    voices: list[Path | None] = []
    masks: list[Path | None] = []
    seconds: list[float] = []
    measured: dict[Path, float] = {}
    for index, speaker in enumerate(request.speakers):
        name = f"speakers[{index}]"
        mask = None if speaker.region.mask is None else bring(speaker.region.mask, f"{name}.region.mask")
        if mask is not None:
            _check_mask(mask, size, f"request.{name}.region.mask", access)
        voice = None if speaker.audio is None else bring(speaker.audio, f"{name}.audio")
        if voice is not None and voice not in measured:
            field = f"request.{name}.audio"
            measured[voice] = measure_seconds(voice, field=field, max_seconds=access.max_seconds)
        masks.append(mask)
        voices.append(voice)
        seconds.append(0.0 if voice is None else measured[voice])
    return Media(image=image, image_size=size, voices=tuple(voices), seconds=tuple(seconds), masks=tuple(masks))


def read(request: Request, media: Media, plan: Plan) -> Inputs:
    """Decode the media and bring them to the plan's size and length. Raises RequestError naming the field."""
    spans = voice_spans(media.seconds, plan.audio_type)
    masks, _ = region_masks([speaker.region for speaker in request.speakers], media.masks, plan.canvas)
    return Inputs(
        image=apply_canvas(read_picture(media.image, field="request.image"), plan.canvas),
        voices=read_voices(media.voices, spans, plan.seconds),
        masks=masks,
        sound=read_sound(media.voices, spans, plan.seconds),
    )


def scheme_of(address: str) -> str:
    """Return an address' scheme in small letters: "path" for a plain path or a file URL.

    A scheme has two letters or more before `://` (a Windows drive has one), or is `data`.
    """
    if address[:5].lower() == "data:":
        return "data"
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", address)
    scheme = found[1].lower() if found else "path"
    return "path" if scheme == "file" else scheme


# --- addresses --------------------------------------------------------------------------------------------------------


def _bring(address: str, field: str, open_address: Callable[..., Path | None], access: Access, into: Path) -> Path:
    if not isinstance(address, str) or not address:
        raise RequestError("no address is given", field=field, hint="give a path or an address with its scheme")
    if scheme_of(address.strip()) != "path":
        # Copying leaves blanks around a URL; the name of a file may have them.
        address = address.strip()
    scheme = scheme_of(address)
    if scheme not in access.schemes:
        if scheme == "path" and (error := _no_path(address, field)) is not None:
            raise error
        what = "paths of this machine" if scheme == "path" else f"addresses of the scheme {scheme!r}"
        raise RequestError(
            f"{what} are not allowed here",
            field=field,
            hint=f"allowed: {', '.join(access.schemes) or 'none'}",
            code="scheme_refused",
        )
    if scheme == "path":
        address = str(_local(address, field, access))
    try:
        path = open_address(address=address, scheme=scheme, access=access, into=into)
    except RequestError as error:
        # A plugin does not know which input of the request it opens.
        raise RequestError(error.what, field=error.field or field, hint=error.hint, code=error.code) from error
    if path is None:
        raise RequestError(f"no installed plugin opens {scheme!r} addresses", field=field, hint="multitalk plugins")
    size = path.stat().st_size
    if size == 0:
        hint = "check that it was written completely"
        raise RequestError("the file is empty (0 bytes)", field=field, hint=hint, code="file_empty")
    if size > access.max_bytes:
        hint = f"at most {access.max_bytes} are allowed"
        raise RequestError(f"the file has {size} bytes", field=field, hint=hint, code="file_too_large")
    return path


#: How a URL begins whose scheme is absent or misspelt: `www.example.org/a`, `//example.org/a`, `https:/example.org/a`.
_NO_URL = re.compile(
    r"(?:https?[:/\\;.]+|//)?(?=[^/\s])(?:www\.|(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,24}(?::\d+)?/)", re.IGNORECASE
)


def _no_path(address: str, field: str) -> RequestError | None:
    """Return the error for what looks like something else than a path and has no scheme: a URL, or base64 text."""
    text = address.strip()
    if _NO_URL.match(text):
        return RequestError(
            f"{_short(text)} is no URL: its scheme is missing or misspelt",
            field=field,
            hint="put https:// in front of the host",
            code="address_invalid",
        )
    if len(text) >= _LEAST_BASE64 and (is_medium(text) or is_base64(text)) and not text.startswith("/"):
        return RequestError(
            f"a text of {len(text)} letters is no address, and too short or cut off to be a file as base64",
            field=field,
            hint="send all of the file's base64 text, or data:image/png;base64, and the text",
            code="bad_base64",
        )
    return None


def _local(address: str, field: str, access: Access) -> Path:
    """Resolve a path or file URL, symbolic links included, and hold it against the allowed folders."""
    given = address
    if re.match(r"file://", address, re.IGNORECASE):
        parts = urlsplit(address)
        if parts.netloc not in ("", "localhost"):
            raise RequestError(f"{address!r} names another host", field=field, hint="write file:///folder/file")
        given = unquote(parts.path)
    try:
        path = Path(given).resolve()
        allowed = access.folders is None or any(path.is_relative_to(folder.resolve()) for folder in access.folders)
        if not allowed:
            folders = ", ".join(str(folder) for folder in access.folders or ()) or "none"
            raise RequestError(
                f"{_short(given)} is outside the allowed folders", field=field, hint=f"allowed: {folders}"
            )
        if path.is_dir():
            raise RequestError(f"{_short(given)} is a folder", field=field, hint="name a file in it")
        if not path.exists():
            hint = f"looked in {_short(str(path.parent))}"
            if _NO_URL.match(given.strip()):
                hint += "; if it is a URL, put https:// in front of the host"
            raise RequestError(f"{_short(given)} does not exist", field=field, hint=hint)
        if not path.is_file():
            raise RequestError(f"{_short(given)} is not a regular file", field=field, hint="copy it to a file first")
        with path.open("rb"):
            pass
    except (OSError, ValueError, RuntimeError) as error:
        # A name with a NUL, a name too long, a circle of links, no permission.
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"{_short(given)} cannot be opened: {reason}", field=field, hint="name a file") from error
    return path


def _short(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:80]}...{text[-20:]}")


def _check_mask(mask: Path, size: tuple[int, int], field: str, access: Access) -> None:
    found = picture_size(mask, field=field, max_pixels=access.max_pixels)
    if found != size:
        raise RequestError(
            f"the mask has {found[0]} x {found[1]} pixels, the picture {size[0]} x {size[1]}",
            field=field,
            hint="draw the mask over the upright picture",
            code="bad_region",
        )


# --- the request by itself --------------------------------------------------------------------------------------------


def _wrong(name: str, what: str, hint: str) -> RequestError:
    return RequestError(what, field=f"request.{name}", hint=hint)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _check_choice(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise _wrong(name, f"{value!r} is not known", f"choose {' or '.join(known)}")


def _check_filename(name: str) -> None:
    hint = "give a bare name such as talk.mp4; the folder belongs to the sink"
    if not isinstance(name, str) or not name.strip() or name.startswith("."):
        raise _wrong("filename", f"{name!r} is not a file name", hint)
    if any(mark in name for mark in "/\\\0") or not _printable(name):
        raise _wrong("filename", f"{name!r} holds a folder or a control character", hint)
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > 200:
        raise _wrong("filename", f"the name has {size} bytes", "give at most 200; letters beyond ASCII have several")
    if not name.lower().endswith(".mp4"):
        raise _wrong("filename", f"{name!r} does not end in .mp4", hint)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> bool:
    # Bytes that are no text in this locale arrive as lone surrogates: strange, but a name. Others are no letters.
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").isprintable()
    except UnicodeEncodeError:
        return False


def _check_region(name: str, region: Region) -> None:
    if region.box is None:
        return
    if region.mask is not None:
        raise _wrong(name, "both a box and a mask are given", "give one of them")
    hint = "give [x0, y0, x1, y1] with x0 < x1 and y0 < y1, in pixels or fractions of the picture"
    if len(region.box) != 4 or not all(_is_finite(edge) for edge in region.box):
        raise _wrong(f"{name}.box", f"{list(region.box)} is not four finite numbers", hint)
    x0, y0, x1, y1 = region.box
    if x0 >= x1 or y0 >= y1:
        raise _wrong(f"{name}.box", f"{list(region.box)} encloses nothing", hint)
