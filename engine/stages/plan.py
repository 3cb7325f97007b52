"""Request, Media and PlanInputs -> Plan: all decisions about a generation, made before anything is loaded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from engine.cancel import apart
from engine.data import Canvas, Media, Plan, PlanInputs, Request, Seams, Window
from engine.data.cancel import CancelToken
from engine.errors import RequestError
from engine.media.audio import voice_spans
from engine.media.canvas import choose_bucket, make_canvas, make_seats
from engine.media.picture import read_picture
from engine.stages.dub import check_dub, plan_dub, plan_scenes
from engine.stages.familiar import read_familiar
from engine.stages.pauses import plan_in_pauses, tell_pauses
from engine.stages.timeline import IMAGES, PROMPTS, image_field, plan_cues, tell_rounded
from engine.stages.windows import count_windows, generated_frames, plan_windows

#: One hour, and one hour at 25 frames per second: longer requests are typing errors. The limit of frames applies to
#: requested frames and to generated ones.
MAX_SECONDS = 3600.0
MAX_FRAMES = 90_000
#: Share of the picture that may be cropped without a warning.
MAX_CROP = 0.3
#: Seconds that may be cut from a voice without a warning; one frame if that is shorter.
_SLACK = 0.1


def plan_walk(request: Request, media: Media, inputs: PlanInputs, *, cancel: CancelToken | None = None) -> Plan:
    """Decide sizes, seats, frames and windows.

    Raises RequestError if the request is impossible or exceeds its budget, before any work that grows with its numbers,
    and Cancelled once `cancel` is set.
    """
    _check_images(request, inputs)
    check_dub(request, inputs)
    if inputs.speakers and len(request.speakers) > inputs.speakers:
        raise RequestError(
            f"model={inputs.model} was made for {inputs.speakers} speaker{'s'[: inputs.speakers != 1]}, not for "
            f"{len(request.speakers)}",
            field="request.speakers",
            hint="give fewer voices, or choose another model",
        )
    fps = request.fps or inputs.native_fps
    spans = voice_spans(media.seconds, request.audio_type, media.delays)
    voices = voices_end(spans)
    frames = _frames(request, fps, voices)
    target = choose_bucket(media.image_size, inputs.buckets)
    canvas = make_canvas(media.image_size, target, request.fit)
    seats, seat_warnings = apart(lambda: make_seats(request.speakers, media, canvas, spans), cancel, "plan")
    native = request.timing == "native"
    generated_fps = inputs.native_fps if native else fps
    generated = generated_frames(frames, fps, generated_fps) if native else frames
    _check_budget(request, inputs, frames / fps, generated, max(fps, inputs.native_fps))
    windows, seams = _windows(media, inputs, generated, generated_fps, cancel)
    _check_forwards(request, inputs, len(windows))
    dub, dub_warnings = plan_dub(request, media, inputs, windows, seconds=frames / fps, fps=generated_fps)
    prompts, images = (
        plan_cues(cues, kind, windows, seconds=frames / fps, fps=fps, generated_fps=generated_fps)
        for cues, kind in ((request.prompts, PROMPTS), (request.images, IMAGES))
    )
    canvases = tuple(make_canvas(size, target, request.fit) for size in media.image_sizes)
    # First what prevents the generation, then what is cut from voices: callers who set no length must see that.
    warnings = [f"no video can be generated {inputs.absent}"] if inputs.weights is None else []
    warnings += () if request.made is None else request.made.dialogue.warnings
    warnings += _length_warnings(spans, frames / fps, fps, request)
    if inputs.untrained:
        warnings.append(f"the weights of {inputs.model!r} are untrained: the video shows noise, not a talking person")
    warnings += _unfamiliar_warnings(media, inputs)
    warnings += tell_rounded(prompts, PROMPTS, fps) + tell_rounded(images, IMAGES, fps)
    warnings += [] if seams is None else tell_pauses(seams)
    if request.negative_prompt and not inputs.negative:
        warnings.append("the negative prompt has no effect, because the guidance has no pass that would see it")
    warnings += dub_warnings
    if len(request.speakers) > 2:
        warnings.append("three and more speakers are experimental: the public weights were trained on one and two")
    if inputs.tile:
        warnings.append(f"memory.tile={inputs.tile}: decoding in tiles changes frames slightly")
    warnings += _long_warnings(generated, len(windows), inputs)
    if fps != inputs.native_fps and request.timing == "direct":
        warnings.append(
            f"{fps:g} frames per second: lips stay synchronous, but the model learned motion at "
            f"{inputs.native_fps:g}; timing=native generates at that rate and selects frames"
        )
    warnings += _cut_warnings(canvas)
    for index, other in enumerate(canvases, start=1):
        warnings += [f"images[{index}]: {warning}" for warning in _cut_warnings(other)]
    warnings += _region_warnings(request, media)
    warnings += media.warnings
    # There the region decides what is kept.
    warnings += [] if dub is not None and dub.mode == "keep" and len(seats) == 1 else seat_warnings
    return Plan(
        model=inputs.model,
        resolution=inputs.resolution,
        untrained=inputs.untrained,
        canvas=canvas,
        seats=seats,
        frames=frames,
        fps=fps,
        seconds=frames / fps,
        timing=request.timing,
        audio_type=request.audio_type,
        generated_frames=generated,
        generated_fps=generated_fps,
        windows=windows,
        sampler=inputs.sampler,
        steps=inputs.steps,
        guidance=inputs.guidance,
        passes=inputs.passes,
        forwards=_all_forwards(inputs, len(windows)),
        seed=request.seed,
        weights=inputs.weights,
        warnings=tuple(warnings),
        evaluations=inputs.evaluations,
        prompts=prompts,
        images=images,
        canvases=canvases,
        seams=seams,
        dub=dub,
        dialogue=None if request.made is None else request.made.dialogue,
        retakes=inputs.retakes,
        most_forwards=_all_forwards(inputs, len(windows)) * (1 + inputs.retakes) if inputs.retakes else None,
    )


def _windows(
    media: Media, inputs: PlanInputs, frames: int, fps: float, cancel: CancelToken | None
) -> tuple[tuple[Window, ...], Seams | None]:
    """Return the windows for `frames` frames at `fps`, and where they meet if that was chosen."""
    size = {"window": inputs.window, "motion": inputs.motion}
    if inputs.windows == "pauses" and media.loudness is not None:
        return plan_in_pauses(frames, media.loudness, fps=fps, **size, cancel=cancel)
    if media.source is not None and media.source.cuts:
        return plan_scenes(frames, media.source, fps=fps, inputs=inputs, cancel=cancel), None
    return plan_windows(frames, **size, whole=inputs.whole_windows, cancel=cancel), None


def _check_images(request: Request, inputs: PlanInputs) -> None:
    if request.images and inputs.style not in ("infinitetalk", "longcat"):
        raise RequestError(
            f"several pictures need windows that see the picture, and continuation.style={inputs.style} continues from "
            f"the frames before",
            field="request.images",
            hint="choose continuation.style=infinitetalk, or give one picture",
            code="conflict",
        )


def _all_forwards(inputs: PlanInputs, windows: int) -> int:
    """Return the forwards of the first `windows` windows."""
    first = _forwards(inputs)
    return first + (windows - 1) * (first if inputs.others is None else inputs.others)


def _forwards(inputs: PlanInputs) -> int:
    """Return the forwards of the first window."""
    return (inputs.evaluations or inputs.steps) * inputs.passes if inputs.forwards is None else inputs.forwards


def voices_end(spans: Sequence[tuple[float, float]]) -> float:
    """Return the time in seconds at which the last voice ends; 0 if nobody speaks.

    This is the length of a video whose request has no number of frames. `spans` contains (begin, end) of each voice on
    the video's time axis.
    """
    return max((end for begin, end in spans if end > begin), default=0.0)


def _frames(request: Request, fps: float, voices: float) -> int:
    budget = request.budget
    if isinstance(request.frames, int):
        if request.frames > (most := min(budget.frames, MAX_FRAMES)):
            raise _too_much(f"{request.frames} frames are too many", "frames", f"at most {most}")
        if request.frames / fps > MAX_SECONDS:
            what = f"{request.frames} frames at {fps:g} per second last {request.frames / fps:.2f} s"
            raise _too_much(what, "frames", f"at most {MAX_SECONDS:g} s")
        return request.frames
    if voices == 0:
        raise RequestError(
            "nobody speaks, so the audio gives no length", field="request.frames", hint="give --frames, 1 or more"
        )
    if voices > (longest := min(budget.seconds, MAX_SECONDS)):
        what = f"the voices last {voices:.2f} s, and a video as long as its voices may last {longest:g} s here"
        raise _too_much(what, "frames", f"shorten the voices to {longest:g} s, or give a number of frames")
    # A frame that starts within the last microsecond of the audio comes from rounding its length.
    frames = max(1, int(voices * fps + 1e-6))
    # At low frame rates the rest after the last whole frame may contain a word.
    frames += voices - frames / fps > _SLACK
    if frames > MAX_FRAMES:
        raise _too_much(f"{frames} frames are too many", "frames", f"at most {MAX_FRAMES}")
    return frames


def _long_warnings(frames: int, windows: int, inputs: PlanInputs) -> list[str]:
    if inputs.holds is None or windows == 1:
        return []
    seconds, source, instead = inputs.holds
    # The loss happens from window to window, so it depends on frames and not on seconds.
    most = int(seconds * inputs.native_fps)
    if frames <= most:
        return []
    warning = (
        f"continuation.style=multitalk keeps a face for about {seconds:g} s, {most} frames ({source}); this video has "
        f"{frames}, and later windows may lose it: for longer videos use {instead}"
    )
    return [warning]


def _cut_warnings(canvas: Canvas) -> list[str]:
    if canvas.fit != "crop":
        return []
    across, down = (min(1.0, target / scaled) for target, scaled in zip(canvas.target, canvas.scaled, strict=True))
    share = across * down
    if 1 - share <= MAX_CROP:
        return []
    percent = f"{share:.0%}" if share >= 0.01 else "less than 1%"
    where = "left and right" if across < down else "top and bottom"
    warning = (
        f"the video shows {percent} of the picture: {canvas.source[0]} x {canvas.source[1]} is cropped ({where}) to "
        f"the shape of {canvas.target[0]} x {canvas.target[1]}; fit=pad shows all of it with black bars"
    )
    return [warning]


def _region_warnings(request: Request, media: Media) -> list[str]:
    if all(size == media.image_size for size in media.image_sizes):
        return []
    placed = any(speaker.region.box or speaker.region.mask for speaker in request.speakers)
    return ["the speakers' regions are those of the first picture, and another one has another size"] if placed else []


def _unfamiliar_warnings(media: Media, inputs: PlanInputs) -> list[str]:
    """Return a warning if a picture is unlike those that the weights were trained on."""
    familiar = read_familiar(inputs.weights)
    if inputs.weights is None or familiar is None:
        return []
    for index, image in enumerate((media.image, *media.images)):
        stat, field = image.stat(), image_field(index, several=bool(media.images))
        if not _is_familiar(inputs.weights, image, (stat.st_mtime_ns, stat.st_size), field):
            what = f"model={inputs.model} was trained only on {familiar.what}, and this picture is different"
            return [f"{what}: the video will not look like it; {familiar.instead}"]
    return []


@functools.lru_cache(maxsize=8)
def _is_familiar(weights: Path, image: Path, stamp: tuple[int, int], field: str) -> bool:
    """Return whether the weights were trained on such pictures; cached, because advice plans a request many times.

    `stamp`, modification time and size, distinguishes a file from an earlier one of the same name.
    """
    familiar = read_familiar(weights)
    return familiar is None or familiar.knows(read_picture(image, field=field))


def _check_budget(request: Request, inputs: PlanInputs, seconds: float, generated: int, rate: float) -> None:
    budget = request.budget
    if inputs.steps > budget.steps:
        overridden = any(override.lstrip("+~").startswith("sampler.steps=") for override in request.overrides)
        raise RequestError(
            f"{inputs.steps} steps are too many",
            field="overrides (sampler.steps)" if overridden else "sampler.steps",
            hint=f"at most {budget.steps}",
            code="out_of_range",
        )
    if generated > (most := min(MAX_FRAMES, max(budget.frames, int(budget.seconds * rate)))):
        what = f"{generated} frames would be generated for {seconds:.2f} s of video"
        raise _too_much(what, "frames", f"at most {most}; ask for fewer frames, or for timing=direct")
    _check_forwards(request, inputs, count_windows(generated, window=inputs.window, motion=inputs.motion))


def _check_forwards(request: Request, inputs: PlanInputs, windows: int) -> None:
    budget = request.budget
    evaluations = inputs.evaluations or inputs.steps
    forwards = _all_forwards(inputs, windows) * (1 + inputs.retakes)
    if forwards > budget.forwards:
        per_steps = "" if evaluations == inputs.steps else f" of {evaluations} evaluations"
        at_most = "" if _forwards(inputs) == evaluations * inputs.passes else "at most "
        again, fewer = "", "steps"
        if inputs.retakes:
            again, fewer = f" and {inputs.retakes} retakes of each", "steps or retakes"
        raise _too_much(
            f"{windows} windows{again}, {inputs.steps} steps{per_steps} and {at_most}{inputs.passes} passes per step "
            f"make {forwards} forwards",
            "frames",
            f"at most {budget.forwards}; ask for a shorter video or fewer {fewer}",
        )


def _too_much(what: str, name: str, hint: str) -> RequestError:
    return RequestError(what, field=f"request.{name}", hint=hint, code="out_of_range")


def _length_warnings(spans: Sequence[tuple[float, float]], seconds: float, fps: float, request: Request) -> list[str]:
    if not isinstance(request.frames, int):
        return []
    slack = min(1 / fps, _SLACK)
    voices = voices_end(spans)
    fitting = f'num_frames "auto" (--frames auto) makes a video as long as the voices: {voices:.2f} s'
    cut = [
        f"{'the voice' if len(spans) == 1 else f'voice {index}'} is cut from {max(begin, seconds):.2f} s to {end:.2f} s"
        for index, (begin, end) in enumerate(spans, start=1)
        if end > max(begin, seconds + slack)
    ]
    if cut:
        return [f"{', '.join(cut)}; {fitting}"]
    if 0 < voices < seconds - slack:
        return [f"the voices end, and silence follows from {voices:.2f} s to {seconds:.2f} s; {fitting}"]
    return []
