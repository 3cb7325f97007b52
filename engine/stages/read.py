"""Request -> Media -> Inputs: open the addresses, read their headers, decode them."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from engine.cancel import apart, check
from engine.data import Access, AudioType, Cut, Fit, Inputs, Media, Plan, Region, Request, Speaker, Timing
from engine.data.cancel import CancelToken
from engine.errors import RequestError
from engine.media.audio import read_sounds, voice_spans
from engine.media.canvas import apply_canvas, region_masks
from engine.media.excerpts import KEYS, channel_number, check_values, split_address, values_of
from engine.media.picture import look_at, read_picture
from engine.media.quiet import read_loudness
from engine.media.tracks import inspect
from engine.stages.addresses import bring_file, local, scheme_of
from engine.stages.divide import check_people
from engine.stages.dub import check_source, open_source, with_source_sound
from engine.stages.plan import voices_end
from engine.stages.timeline import IMAGES, PROMPTS, check_cues, image_field

#: Maximum frames per second: higher values are typing errors, and with whole AAC packets (21 ms) the sound could no
#: longer end within one frame of the pictures.
MAX_FPS = 60.0
#: Minimum frames per second: below it, length and sound of a few frames grow without bound.
MIN_FPS = 1.0
MAX_SEED = 2**63 - 1
#: Seconds that a plugin has to clean up after the request is cancelled.
_GRACE = 0.5
#: Seconds of each voice that a plan decodes; the generation reports problems after that.
PLAN_SECONDS = 60.0
#: The seed that requests a random one.
RANDOM = -1


def check_request(request: Request) -> None:
    """Raise RequestError if the request itself is invalid; opens nothing."""
    check_cues(request.prompts, request.prompt, PROMPTS)
    check_cues(request.images, request.image, IMAGES)
    check_source(request)
    if not request.prompts and (not isinstance(request.prompt, str) or not request.prompt.strip()):
        raise _wrong("prompt", "the prompt is empty", "describe in a sentence who talks and where")
    texts = {f"prompts[{index}].text": cue.value for index, cue in enumerate(request.prompts)}
    for name, text in {"prompt": request.prompt, "negative_prompt": request.negative_prompt, **texts}.items():
        if text is not None and not _is_text(text):
            raise _wrong(name, "the text contains bytes that are not UTF-8", "send UTF-8 text with complete characters")
    _check_choice("audio_type", request.audio_type, get_args(AudioType))
    _check_choice("timing", request.timing, get_args(Timing))
    _check_choice("fit", request.fit, get_args(Fit))
    if not _is_whole(request.seed) or not RANDOM <= request.seed <= MAX_SEED:
        hint = f"give a whole number from 0 to {MAX_SEED}, or {RANDOM} for a random one"
        raise _wrong("seed", f"{request.seed!r} is not a seed", hint)
    frames = request.frames
    if frames not in (None, "auto") and (not isinstance(frames, int) or isinstance(frames, bool) or frames < 1):
        hint = 'give a whole number, 1 or more, or "auto" for the length of the voices'
        raise _wrong("frames", f"{frames!r} is not a number of frames", hint)
    if request.fps is not None and (not _is_finite(request.fps) or not MIN_FPS <= request.fps <= MAX_FPS):
        hint = f"give a number from {MIN_FPS:g} to {MAX_FPS:g}"
        raise _wrong("fps", f"{request.fps!r} frames per second are not possible", hint)
    if request.filename is not None:
        _check_filename(request.filename)
    _check_source_of_voices(request)
    if request.made is None and (request.script or request.voices):
        return
    if not request.speakers:
        raise _wrong("speakers", "there is no speaker", "give at least one voice")
    for index, speaker in enumerate(request.speakers):
        _check_region(f"speakers[{index}].region", speaker.region)
        _check_cut(f"speakers[{index}]", speaker)
    if not isinstance(frames, int) and all(speaker.audio is None for speaker in request.speakers):
        raise _wrong("frames", "nobody speaks, so no voice gives the video's length", "give the number of frames")


def _check_source_of_voices(request: Request) -> None:
    """Raise RequestError if a script, a recording and speakers are combined."""
    given = [name for name in ("script", "voices") if getattr(request, name)]
    if request.speakers and request.made is None:
        given.append("speakers")
    if len(given) > 1:
        raise RequestError(
            f"{given[0]} and {given[1]} are both given",
            field=f"request.{given[0]}",
            hint="give one of them",
            code="conflict",
        )
    if request.script and request.audio_type == "add":
        hint = "remove it: the script says when each person speaks"
        raise RequestError("audio_type is add, and there is a script", field="request.audio_type", hint=hint)
    check_people(request)


def drawn(request: Request) -> Request:
    """Return the request; if its seed is -1, with a random seed.

    A random seed has 32 bits, which every JSON parser reads exactly.
    """
    return replace(request, seed=secrets.randbelow(2**32)) if request.seed == RANDOM else request


def fetch(
    request: Request,
    open_address: Callable[..., Path | None],
    access: Access,
    into: Path,
    *,
    cancel: CancelToken | None = None,
) -> Media:
    """Make the content of a request's addresses available as local files, within `access`, and read their headers.

    `open_address` is the hook of that name. It gets a scheme that `access` allows and, for paths, an absolute path
    without symbolic links in one of the allowed folders. An address that does not start with `data:` or `scheme://` is
    a path, and so is `file:///...`. A voice's address may end in the part of the file to use
    (engine/media/excerpts.py), unless a file of that whole name exists. The Access that the hook gets contains `cancel`
    and the deadline for all addresses. Raises RequestError with the field, and Cancelled within a second once `cancel`
    is set.
    """
    check_request(request)
    opened: dict[str, Path] = {} if request.made is None else dict(request.made.files)
    remaining = access.total_timeout

    def bring(address: str, name: str) -> Path:
        nonlocal remaining
        if address not in opened:
            check(cancel, "read")
            began = time.monotonic()
            within = replace(access, until=began + remaining, cancel=cancel)
            call = partial(bring_file, address, f"request.{name}", open_address, within, into)
            # The engine's own plugins check the token; others may not.
            opened[address] = apart(call, cancel, "read", grace=_GRACE)
            remaining -= time.monotonic() - began
        return opened[address]

    images: list[Path] = []
    sizes: list[tuple[int, int]] = []
    warnings: list[str] = []
    source = None
    if request.video:
        source, first, told = open_source(
            bring(request.video, "video"), into, max_pixels=access.max_pixels, cancel=cancel
        )
        images, sizes, warnings = [first], [source.size], [*told]
    addresses = [] if source is not None else [cue.value for cue in request.images] or [request.image]
    for index, address in enumerate(addresses):
        field = image_field(index, several=bool(request.images))
        image = bring(address, field.removeprefix("request."))
        picture = apart(partial(look_at, image, field=field, max_pixels=access.max_pixels), cancel, "read")
        images.append(image)
        sizes.append(picture.size)
        warnings += [f"images[{index}]: {text}" if request.images else text for text in picture.warnings]
    size = sizes[0]
    voices: list[Path | None] = []
    masks: list[Path | None] = []
    seconds: list[float] = []
    inspected: dict[object, tuple[Cut, tuple[str, ...]]] = {}
    cuts: list[Cut | None] = []
    delays: list[float] = []
    for index, speaker in enumerate(request.speakers):
        name = f"speakers[{index}]"
        mask = None if speaker.region.mask is None else bring(speaker.region.mask, f"{name}.region.mask")
        if mask is not None:
            mask_warnings = _check_mask(mask, size, f"request.{name}.region.mask", access, cancel)
            warnings += [f"{name}.region.mask: {warning}" for warning in mask_warnings]
        masks.append(mask)
        voice, cut, delay = None, None, 0.0
        if speaker.audio is not None:
            address, values, fields = (
                (speaker.audio, values_of(speaker), {key: f"request.{name}.{key}" for key in KEYS})
                if speaker.audio in opened
                else _voice(speaker, f"request.{name}", access)
            )
            voice = bring(address, f"{name}.audio")
            key = (voice, *(values[key] for key in KEYS if key != "delay"))
            if key not in inspected:
                inspection = inspect(
                    voice,
                    field=f"request.{name}.audio",
                    start=float(values["start"] or 0),
                    duration=values["duration"],
                    track=values["track"],
                    channel=channel_number(values["channel"]),
                    max_seconds=access.max_seconds,
                    fields=fields,
                    cancel=cancel,
                )
                inspected[key] = inspection.cut, inspection.warnings
            (cut, cut_warnings), delay = inspected[key], float(values["delay"] or 0)
            cut = replace(cut, asked=_requested_values(values))
            warnings += [f"speakers[{index}]: {text}" for text in cut_warnings]
        voices.append(voice)
        cuts.append(cut)
        delays.append(delay)
        seconds.append(0.0 if cut is None else cut.seconds)
    return Media(
        image=images[0],
        image_size=size,
        images=tuple(images[1:]),
        image_sizes=tuple(sizes[1:]),
        voices=tuple(voices),
        seconds=tuple(seconds),
        masks=tuple(masks),
        cuts=tuple(cuts),
        delays=tuple(delays),
        warnings=tuple(warnings),
        source=source,
    )


def listen(media: Media, plan: Plan, *, cancel: CancelToken | None = None) -> tuple[str, ...]:
    """Return the warnings of `read` about the voices' first `PLAN_SECONDS` seconds. Raises as `read` does."""
    spans = voice_spans(media.seconds, plan.audio_type, media.delays)
    sounds = read_sounds(media.voices, media.cuts, spans, plan.seconds, most=PLAN_SECONDS, cancel=cancel)
    return sounds.warnings


def read(request: Request, media: Media, plan: Plan, *, cancel: CancelToken | None = None) -> Inputs:
    """Decode the media and convert them to the plan's size and length.

    Raises RequestError with the field, and Cancelled within a second once `cancel` is set.
    """
    spans = voice_spans(media.seconds, plan.audio_type, media.delays)
    images, masks = apart(partial(_read_pictures, request, media, plan), cancel, "read")
    sounds = read_sounds(media.voices, media.cuts, spans, plan.seconds, cancel=cancel)
    inputs = Inputs(images[0], sounds.voices, masks, sounds.track, sounds.warnings, images=images[1:])
    return with_source_sound(inputs, media, plan, cancel=cancel)


def hear(request: Request, media: Media, native_fps: float, *, cancel: CancelToken | None = None) -> Media:
    """Return `media` with the loudness of its voices, as far as the video needs them. Raises as `read` does."""
    spans = voice_spans(media.seconds, request.audio_type, media.delays)
    seconds = min(voices_end(spans), length(request, media, native_fps))
    return replace(media, loudness=read_loudness(media.voices, media.cuts, spans, seconds, cancel=cancel))


def length(request: Request, media: Media, native_fps: float) -> float:
    """Return about how long the video is, in seconds; `plan_walk` decides it to a frame."""
    if isinstance(request.frames, int):
        return request.frames / (request.fps or native_fps)
    return voices_end(voice_spans(media.seconds, request.audio_type, media.delays))


def _read_pictures(
    request: Request, media: Media, plan: Plan
) -> tuple[tuple[npt.NDArray[np.uint8], ...], npt.NDArray[np.float32]]:
    """Return the pictures at the plan's size and the speakers' masks; a picture that is used twice is read once."""
    masks, _ = region_masks([speaker.region for speaker in request.speakers], media.masks, plan.canvas)
    found: dict[Path, npt.NDArray[np.uint8]] = {}
    files = (media.image, *media.images)
    for index, (path, canvas) in enumerate(zip(files, (plan.canvas, *plan.canvases), strict=True)):
        if path not in found:
            field = image_field(index, several=bool(media.images))
            found[path] = apply_canvas(read_picture(path, field=field), canvas)
    return tuple(found[path] for path in files), masks


def _voice(speaker: Speaker, name: str, access: Access) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Return a voice's address, the values for its excerpt by key, and their fields. Raises RequestError."""
    assert speaker.audio is not None
    values = values_of(speaker)
    fields = {key: f"{name}.{key}" for key in KEYS}
    address, written = split_address(speaker.audio)
    if not written or _is_there(speaker.audio, access):
        return speaker.audio, values, fields
    check_values(written, lambda key, what, hint: RequestError(f"{key}: {what}", field=f"{name}.audio", hint=hint))
    for key, value in written.items():
        if values[key] is not None and _same(key, values[key]) != _same(key, value):
            raise RequestError(
                f"the address has {key} {value!r} and the field {values[key]!r}",
                field=fields[key],
                hint="remove one of them",
                code="conflict",
            )
        values[key], fields[key] = value, f"{name}.audio"
    return address, values, fields


def _requested_values(values: Mapping[str, Any]) -> tuple[tuple[str, float | int], ...]:
    # Seconds become floats and channels numbers, so that a repeated video stores the same text.
    return tuple(
        (key, _same(key, value) if key in ("track", "channel") else float(value))
        for key, value in values.items()
        if value is not None
    )


def _same(key: str, value: Any) -> Any:
    return channel_number(value) if key == "channel" else value


def _is_there(address: str, access: Access) -> bool:
    """Return whether a file exists whose name ends like an excerpt of a voice."""
    if scheme_of(address) != "path" or "://" in address or "path" not in access.schemes:
        return False
    try:
        return local(address, "", access).is_file()
    except RequestError:
        return False


def _check_mask(
    mask: Path, size: tuple[int, int], field: str, access: Access, cancel: CancelToken | None
) -> tuple[str, ...]:
    """Return the warnings about a mask. Raises RequestError if it does not have the picture's `size`."""
    look = apart(partial(look_at, mask, field=field, max_pixels=access.max_pixels, mask=True), cancel, "read")
    if look.size != size:
        raise RequestError(
            f"the mask has {look.size[0]} x {look.size[1]} pixels, the picture {size[0]} x {size[1]}",
            field=field,
            hint="draw the mask over the upright picture",
            code="bad_region",
        )
    return look.warnings


# --- the request by itself --------------------------------------------------------------------------------------------


def _wrong(name: str, what: str, hint: str) -> RequestError:
    return RequestError(what, field=f"request.{name}", hint=hint)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    if isinstance(value, int):
        # Python cannot convert much larger integers to float.
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float | np.number) and math.isfinite(value)


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise _wrong(name, f"{value!r} is not known", f"choose {' or '.join(choices)}")


def _check_filename(name: str) -> None:
    hint = "give a name without a folder, such as talk.mp4; the sink has the folder"
    if not isinstance(name, str) or not name.strip() or name.startswith("."):
        raise _wrong("filename", f"{name!r} is not a file name", hint)
    if any(mark in name for mark in "/\\\0") or not _printable(name):
        raise _wrong("filename", f"{name!r} contains a folder or a control character", hint)
    size = len(name.encode("utf-8", "surrogateescape"))
    if size > 200:
        raise _wrong("filename", f"the name has {size} bytes", "give at most 200; characters beyond ASCII have several")
    if not name.lower().endswith(".mp4"):
        raise _wrong("filename", f"{name!r} does not end in .mp4", hint)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(name: str) -> bool:
    # Bytes that are not text in this locale arrive as lone surrogates, and are allowed. Other surrogates are not.
    try:
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").isprintable()
    except UnicodeEncodeError:
        return False


def _check_cut(name: str, speaker: Speaker) -> None:
    values = values_of(speaker)
    check_values(values, lambda key, what, hint: _wrong(f"{name}.{key}", what, hint))
    if speaker.audio is None and (key := next((key for key in KEYS if values[key] is not None), "")):
        raise RequestError(
            f"{key} needs a voice, and this person is silent",
            field=f"request.{name}.{key}",
            hint="remove it",
            code="conflict",
        )


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
        raise _wrong(f"{name}.box", f"{list(region.box)} has no area", hint)
