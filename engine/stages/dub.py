"""A source video in place of the picture: fetch its facts, check the request, and plan its scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from engine.cancel import apart
from engine.data import Cut, DubPlan, Inputs, Media, Plan, PlanInputs, Request, SourceVideo, Window
from engine.data.cancel import CancelToken
from engine.errors import RequestError
from engine.media.audio import mix_in
from engine.media.source import FIELD, TINY, find_cuts, survey
from engine.media.tracks import inspect
from engine.stages.windows import plan_windows

#: Seconds by which video and source may differ without a warning.
_SLACK = 0.1


def check_source(request: Request) -> None:
    """Raise RequestError if a source video is combined with pictures."""
    for name, given in (("image", request.image), ("images", request.images)):
        if request.video and given:
            raise RequestError(
                f"{name} and video are both given",
                field=FIELD,
                hint=f"remove {name}: the source video takes its place",
                code="conflict",
            )


def open_source(
    path: Path, into: Path, *, max_pixels: int, cancel: CancelToken | None = None
) -> tuple[SourceVideo, Path, tuple[str, ...]]:
    """Return the facts of a source video, its first frame as a PNG in the folder `into`, and warnings.

    Raises RequestError and Cancelled.
    """
    found = apart(lambda: survey(path, max_pixels=max_pixels, cancel=cancel), cancel, "read")
    picture = into / "source-first-frame.png"
    Image.fromarray(found.first).save(picture, compress_level=1)
    return found.source, picture, found.warnings


def watch(
    media: Media,
    *,
    cuts: str,
    cut_score: float,
    sound: str,
    seconds: float,
    cancel: CancelToken | None = None,
) -> Media:
    """Return `media` with the cuts and the sound of its source video, as far as a video of `seconds` needs them.

    Raises RequestError and Cancelled.
    """
    source = media.source
    if source is None:
        return media
    if cuts == "find":
        look = partial(find_cuts, source, score=cut_score, until=seconds, cancel=cancel)
        found = apart(look, cancel, "read")
        source = replace(source, cuts=found)
    if sound == "under":
        source, warnings = _with_sound(source, cancel)
        media = replace(media, warnings=(*media.warnings, *warnings))
    return replace(media, source=source)


def plan_scenes(
    frames: int, source: SourceVideo, *, fps: float, inputs: PlanInputs, cancel: CancelToken | None = None
) -> tuple[Window, ...]:
    """Cover `frames` frames at `fps` with windows that begin anew at each cut of the source, without history.

    Within a scene they are those of `plan_windows`. Raises Cancelled.
    """
    # As `SourceReader` decides which frame is shown at a time.
    begins = sorted({0, *(math.ceil((cut - TINY) * fps) for cut in source.cuts)})
    begins = [begin for begin in begins if begin < frames]
    windows: list[Window] = []
    for begin, end in zip(begins, [*begins[1:], frames], strict=True):
        scene = plan_windows(
            end - begin, window=inputs.window, motion=inputs.motion, whole=inputs.whole_windows, cancel=cancel
        )
        windows += [replace(one, index=len(windows) + one.index, start=begin + one.start) for one in scene]
    return tuple(windows)


def check_dub(request: Request, inputs: PlanInputs) -> None:
    """Raise RequestError if the config's windows cannot use a source video, or cannot keep it."""
    if not request.video:
        return
    if not inputs.dubs:
        raise RequestError(
            f"model={inputs.model} takes no source video",
            field=FIELD,
            hint="choose model=infinitetalk, or give a picture",
            code="conflict",
        )
    if inputs.style != "infinitetalk":
        raise RequestError(
            f"a source video needs windows that see the picture, and continuation.style={inputs.style} continues from "
            f"the frames before",
            field=FIELD,
            hint="choose continuation.style=infinitetalk, or give a picture",
            code="conflict",
        )
    if inputs.dub_cuts == "find" and inputs.windows == "pauses":
        raise RequestError(
            "windows=pauses and dub.cuts=find both decide where windows begin",
            field="windows",
            hint="choose windows=fixed or dub.cuts=none",
            code="conflict",
        )
    if inputs.dub != "keep":
        return
    speaking = [index for index, speaker in enumerate(request.speakers) if speaker.audio is not None]
    for index in speaking:
        region = request.speakers[index].region
        if region.box is None and region.mask is None:
            raise RequestError(
                "dub.mode=keep keeps the source outside the people who speak, and this one has no region",
                field=f"request.speakers[{index}].region",
                hint="give a box or a mask round the head in all frames, or choose dub.mode=sparse",
                code="bad_region",
            )


def plan_dub(
    request: Request, media: Media, inputs: PlanInputs, windows: Sequence[Window], *, seconds: float, fps: float
) -> tuple[DubPlan | None, list[str]]:
    """Return what is done with the source video in a video of `seconds`, and warnings; None without a source video.

    `windows` are those of frames at `fps`.
    """
    source = media.source
    if source is None:
        return None, []
    scenes = tuple((one.index, one.start / fps) for one in windows[1:] if not one.motion)
    still = source.seconds if source.seconds < seconds - _SLACK else None
    warnings = []
    if still is not None:
        warnings.append(
            f"the source video ends at {source.seconds:.2f} s, and this one at {seconds:.2f} s: its last frame stays; "
            f"{'num_frames' if isinstance(request.frames, int) else 'shorter voices'} would end it there"
        )
    elif source.seconds > seconds + _SLACK:
        frames = int(source.seconds * (request.fps or inputs.native_fps) + 1e-6)
        warnings.append(
            f"the source video goes on until {source.seconds:.2f} s, and this one ends at {seconds:.2f} s; "
            f"num_frames {frames} (--frames {frames}) makes it as long as the source"
        )
    if inputs.dub == "keep" and any(not speaker.region.mask for speaker in request.speakers if speaker.audio):
        warnings.append(
            "dub.mode=keep: regions stay where they are in all frames; a head that leaves its region is cut at its edge"
        )
    if (
        scenes
        and inputs.dub == "keep"
        and any(speaker.region.box or speaker.region.mask for speaker in request.speakers)
    ):
        warnings.append("dub.mode=keep: the same regions are used in all scenes, although people may be elsewhere")
    plan = DubPlan(
        mode=inputs.dub,
        cuts=inputs.dub_cuts,
        size=source.size,
        fps=round(source.fps, 3),
        seconds=source.seconds,
        scenes=scenes,
        still_from=still,
        sound_level=inputs.dub_level if source.sound is not None else None,
    )
    return plan, warnings


def with_source_sound(inputs: Inputs, media: Media, plan: Plan, *, cancel: CancelToken | None = None) -> Inputs:
    """Return `inputs` with the source's sound mixed under the voices, if the plan says so. Raises as `read` does."""
    source = media.source
    if source is None or source.sound is None or plan.dub is None or plan.dub.sound_level is None:
        return inputs
    damage = mix_in(
        inputs.sound,
        source.path,
        source.sound,
        begins=source.sound_begins,
        gain=10 ** (plan.dub.sound_level / 20),
        field=FIELD,
        cancel=cancel,
    )
    return replace(inputs, warnings=(*inputs.warnings, *(f"the source video: {text}" for text in damage)))


def _with_sound(source: SourceVideo, cancel: CancelToken | None) -> tuple[SourceVideo, tuple[str, ...]]:
    try:
        found = apart(lambda: inspect(source.path, field=FIELD, cancel=cancel), cancel, "read")
    except RequestError as error:
        if error.code != "audio_empty":
            raise
        return source, ("dub.sound=under: the source video has no sound, so only the voices are heard",)
    cut: Cut = found.cut
    return replace(source, sound=cut, sound_begins=cut.links[0].zero - source.begins), tuple(
        f"the source video: {text}" for text in found.warnings
    )
