"""Request, Media and Settings -> Plan: the whole walk, decided before anything is loaded."""

from __future__ import annotations

from engine.data import Media, Plan, Request, Settings
from engine.errors import RequestError
from engine.stages.audio import length_seconds, voice_spans
from engine.stages.canvas import choose_bucket, make_canvas, make_seats
from engine.stages.windows import generated_frames, plan_windows

#: An hour at 25 frames a second: longer requests are a slip of the keyboard.
MOST_FRAMES = 90_000


def plan_walk(request: Request, media: Media, settings: Settings) -> Plan:
    """Decide sizes, seats, frames and windows. Raises RequestError where the request cannot be made."""
    warnings: list[str] = []
    fps = request.fps or settings.native_fps
    spans = voice_spans(media.seconds, request.audio_type)
    audio_seconds = length_seconds(media.seconds, request.audio_type)
    frames = _frames(request, fps, audio_seconds)
    target = choose_bucket(media.image_size, settings.buckets)
    canvas = make_canvas(media.image_size, target, request.fit)
    seats, seat_warnings = make_seats(request.speakers, media, canvas, spans)
    native = request.timing == "native"
    generated_fps = settings.native_fps if native else fps
    generated = generated_frames(frames, fps, generated_fps) if native else frames
    windows = plan_windows(generated, window=settings.window, motion=settings.motion)
    if settings.untrained:
        warnings.append(f"the weights of {settings.model!r} are untrained: the video shows noise, not a talking person")
    if settings.weights is None:
        warnings.append(f"nothing can be made {settings.absent}")
    if len(request.speakers) > 2:
        warnings.append("three and more speakers are experimental: the public weights were trained on one and two")
    if settings.tile:
        warnings.append(f"memory.tile={settings.tile}: a VAE that works in tiles makes frames that differ a little")
    warnings += _long_warnings(generated, len(windows), settings)
    warnings += _time_warnings(frames / fps, audio_seconds, fps, settings.native_fps, request)
    warnings += seat_warnings
    return Plan(
        model=settings.model,
        resolution=settings.resolution,
        untrained=settings.untrained,
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
        sampler=settings.sampler,
        steps=settings.steps,
        guidance=settings.guidance,
        passes=settings.passes,
        forwards=len(windows) * settings.steps * settings.passes,
        seed=request.seed,
        weights=settings.weights,
        warnings=tuple(warnings),
    )


def _frames(request: Request, fps: float, audio_seconds: float) -> int:
    if request.frames is None and audio_seconds == 0:
        raise RequestError(
            "nobody speaks, so the audio says no length", field="request.frames", hint="give --frames, 1 or more"
        )
    # A frame that would begin within the last microsecond of the audio is a rounding error of its length.
    frames = request.frames or max(1, int(audio_seconds * fps + 1e-6))
    if frames > MOST_FRAMES:
        raise RequestError(f"{frames} frames are too many", field="request.frames", hint=f"at most {MOST_FRAMES}")
    return frames


def _long_warnings(frames: int, windows: int, settings: Settings) -> list[str]:
    if settings.holds is None or windows == 1:
        return []
    seconds, source, instead = settings.holds
    # What is lost is lost from window to window, so frames count, whatever time they are shown for.
    most = int(seconds * settings.native_fps)
    if frames <= most:
        return []
    told = (
        f"continuation.style=multitalk holds a face for about {seconds:g} s, {most} frames ({source}); this video has "
        f"{frames}, and later windows may lose it: from there on take {instead}"
    )
    return [told]


def _time_warnings(seconds: float, audio: float, fps: float, native: float, request: Request) -> list[str]:
    warnings = []
    frame = 1 / fps
    if audio > seconds + frame:
        warnings.append(f"the audio is {audio:.2f} s long and is cut at {seconds:.2f} s")
    elif 0 < audio < seconds - frame:
        warnings.append(f"the audio ends at {audio:.2f} s and silence follows until {seconds:.2f} s")
    if fps != native and request.timing == "direct":
        warnings.append(
            f"{fps:g} frames a second: lips stay in step, but the model learnt motion at {native:g}; "
            "timing=native generates at its own rate and picks frames"
        )
    return warnings
