"""The kinds of clip that `evaluate_tiny talk` measures: each is a function of a Studio that returns its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from engine.evaluation import metrics as measures
from engine.evaluation.frames import read_video
from engine.evaluation.likeness import drift_of
from engine.evaluation.metrics import Row, by_clip, by_size, by_skin, lag_share, least, mean, minus, ratio, times
from engine.evaluation.mouths import correlation, mouth_openings
from engine.media.audio import VOICE_RATE
from scripts.evaluate_tiny.cases import FPS, Case, find_pieces, write_voice
from scripts.evaluate_tiny.films import generate_video, mouth_rows, regions
from scripts.evaluate_tiny.long_voices import case_looks, long_voices, worst_of
from scripts.evaluate_tiny.studio import FRAMES, Studio

Figures = dict[str, Any]

#: Overrides that choose the model's bundles; overrides of the command apply to `standard`.
TURBO = ("sampler=turbo",)
#: The frame rates that are tried: name, frames per second, number of frames for about five seconds, timing.
RATES = (("8_direct", 8.0, 41, "direct"), ("12.5_direct", 12.5, 65, "direct"), ("8_native", 8.0, 41, "native"))
_FIVE_SECONDS = 130
_TWENTY_SECONDS = 500
_SIX_SECONDS = 150


def detector(studio: Studio) -> Figures:
    """Compare the detector with the truth, on the clips as they were drawn."""
    cases = studio.cases("detector", studio.clips, people=(1, 2))
    rows: list[Row] = []
    for case in studio.each("detector", cases):
        frames = read_video(case.rendered)
        measured_rows = measures.own_and_cross(
            frames, regions(frames, case), case.openings, seed=case.seed, skins=case.skins
        )
        studio.note("detector", measured_rows)
        rows += measured_rows
    skins = by_skin(rows)
    return {
        "clips": len(cases),
        "mean": mean(row.own for row in rows),
        "worst": least(row.own for row in rows),
        "by_skin": skins,
        "worst_skin": least(skins.values()),
        "by_size": by_size(rows),
    }


def vae(studio: Studio) -> Figures:
    """Encode and decode held-out clips of 33 frames with the model's own codec."""
    import torch

    from engine.assembly.location import locate_weights
    from engine.plugin.manager import installed
    from engine.service import EngineService
    from plugins.families.multitalk.model import load_multitalk

    config = EngineService(studio.overrides).config
    model = load_multitalk(locate_weights(config, installed()), device="cpu", dtype="float32")
    cases = studio.cases("vae", studio.clips, people=(1, 2), frames=33)
    errors: list[dict[str, float]] = []
    for case in studio.each("vae", cases):
        # The clip as it was drawn, without the losses of an MP4.
        original = studio.drawn(case)
        pixels = torch.from_numpy(original.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2).contiguous()
        decoded = model.codec.decode(model.codec.encode(pixels)).permute(1, 2, 3, 0).numpy()
        errors.append(measures.codec_errors(original, (decoded + 1) * 127.5, case.mouths))
        studio.details.setdefault("vae", []).append({"seed": case.seed, "size": list(case.size)} | errors[-1])
    model.close()
    return {
        "clips": len(cases),
        "psnr": mean(error["psnr"] for error in errors),
        "psnr_mouth": mean(error["psnr_mouth"] for error in errors),
        "drift_mean": mean(error["drift_mean"] for error in errors),
        "drift_max": round(max(error["drift_max"] for error in errors), 4),
    }


def one(studio: Studio) -> Figures:
    """One person: does the mouth follow the voice, on every skin, in time, and does the head move as it should?"""
    group = studio.one
    skins = by_skin(group.rows)
    return {
        "clips": len(group.cases),
        "mean": mean(row.own for row in group.rows),
        "worst": least(row.own for row in group.rows),
        "by_skin": skins,
        "skin_gap": measures.spread(skins),
        "by_size": by_size(group.rows),
        "lag_share": lag_share(group.rows),
        "motion": ratio(float(np.mean(group.moves)), float(np.mean(group.drawn))),
    }


def two(studio: Studio) -> Figures:
    """Two people who both speak: does each follow the own voice and not the other's?"""
    group = studio.two
    skins = by_skin(group.rows)
    return _bound(group.rows_by_clip) | {
        "by_skin": skins,
        "skin_gap": measures.spread(skins),
        "by_size": by_size(group.rows),
        "lag_share": lag_share(group.rows),
        "motion": ratio(float(np.mean(group.moves)), float(np.mean(group.drawn))),
    }


def swapped(studio: Studio) -> Figures:
    """The clips of `two` with the voices exchanged."""
    rows = []
    for case in studio.each("swapped", studio.two.cases):
        video = studio.generate(case, voices=case.voices[::-1])
        rows.append(mouth_rows(video.frames, case, fps=FPS, swapped=True))
        studio.note("swapped", rows[-1])
    return _bound(rows)


def silent(studio: Studio) -> Figures:
    """Two people, one of whom says nothing: does that mouth stay still? `drawn` are the detector's figures for the same
    clips as they were drawn, where it does.
    """
    cases = studio.cases("silent", studio.clips, people=2, silent=1)
    still: list[float] = []
    moving: list[float] = []
    drawn: dict[bool, list[float]] = {True: [], False: []}
    rows: list[Row] = []
    for case in studio.each("silent", cases):
        voice_rows = mouth_rows(studio.generate(case).frames, case, fps=FPS)
        studio.note("silent", voice_rows)
        rows += voice_rows
        for row, truth, quiet in zip(
            voice_rows, mouth_rows(read_video(case.rendered), case, fps=FPS), case.silent, strict=True
        ):
            (still if quiet else moving).append(row.moved)
            drawn[quiet].append(truth.moved)
    return {
        "clips": len(cases),
        "moved": mean(still),
        "moved_speaking": mean(moving),
        "relative": ratio(mean(still), mean(moving)),
        "drawn": ratio(mean(drawn[True]), mean(drawn[False])),
        "worst": round(max(still) / float(np.mean(moving)), 4) if any(moving) else None,
        "own_mean": mean(row.own for row in rows),
    }


def boxes(studio: Studio) -> Figures:
    """The clips of `two` with the speakers listed from right to left, each with a box around the face."""
    rows = []
    for case in studio.each("boxes", studio.two.cases):
        rows.append(mouth_rows(studio.generate(case, boxes=True).frames, case, fps=FPS))
        studio.note("boxes", rows[-1])
    return _bound(rows)


def turbo(studio: Studio) -> Figures:
    """The clips of `one` and `two` with the turbo bundle, compared with the standard one."""
    figures: Figures = {"clips": 0}
    forwards = usual = 0
    for name, group in (("one", studio.one), ("two", studio.two)):
        few_step_rows = []
        for case in studio.each(f"turbo, {name}", group.cases):
            video = studio.generate(case, overrides=TURBO)
            few_step_rows.append(mouth_rows(video.frames, case, fps=FPS))
            forwards += video.plan.forwards
            studio.note("turbo", few_step_rows[-1], of=name)
        own = mean(row.own for rows in few_step_rows for row in rows)
        usual += group.forwards
        figures["clips"] += len(few_step_rows)
        figures[name] = {"mean": own, "less": minus(mean(row.own for row in group.rows), own)}
        if name == "two":
            figures[name] |= _bound(few_step_rows)
    return figures | {"forwards": ratio(forwards, usual)}


def fps(studio: Studio) -> Figures:
    """The same five seconds at other frame rates, compared with 25; one and two people in turn."""
    cases = studio.cases("fps", studio.clips, people=(1, 2), frames=_FIVE_SECONDS)
    rows_by_rate: dict[str, list[Row]] = {name: [] for name in ("25", *(rate[0] for rate in RATES))}
    for case in studio.each("fps", cases):
        for name, rate, frames, timing in (("25", FPS, _FIVE_SECONDS, "direct"), *RATES):
            video = studio.generate(case, fps=rate, frames=frames, timing=timing)
            rows = mouth_rows(video.frames, case, fps=rate)
            studio.note("fps", rows, rate=name)
            rows_by_rate[name] += rows
    own = {name: mean(row.own for row in rows) for name, rows in rows_by_rate.items()}
    return {"clips": len(cases), "25": {"mean": own["25"]}} | {
        name: {"mean": own[name], "less": minus(own["25"], own[name])} for name, *_ in RATES
    }


def long(studio: Studio) -> Figures:
    """Twenty seconds of two people, with colour correction off and on: sync by window, drifts, seams, likeness."""
    cases = studio.cases("long", studio.long, people=2, frames=_TWENTY_SECONDS)
    figures: Figures = {"clips": len(cases)}
    for name, strength in (("off", 0), ("on", 1)):
        windows: list[list[float]] = []
        drifts, seams, looks = [], [], []
        for case in studio.each(f"long, colour correction {name}", cases):
            video = studio.generate(case, overrides=(f"continuation.color_strength={strength}",))
            area, driving = regions(video.frames, case), case.driving(len(video.frames))
            here = measures.window_sync(video.frames, area, driving, video.plan.windows)
            windows += [[] for _ in range(len(here) - len(windows))]
            for all_, some in zip(windows, here, strict=False):
                all_ += some
            drifts.append(measures.lab_drift(video.frames, video.plan.fps))
            seams.append(measures.seam_ratio(video.frames, video.plan.windows))
            looks.append(drift_of(case_looks(video.frames, case, video.plan)))
            studio.note(
                "long",
                mouth_rows(video.frames, case, fps=FPS),
                color=name,
                drift=drifts[-1],
                seam=seams[-1],
                windows=here,
            )
        sync = [mean(window) for window in windows]
        figures[name] = {
            "windows": sync,
            "mean": mean(sync),
            "least": least(sync),
            "below": minus(mean(sync), least(sync)),
            "lab_drift": mean(drifts),
            "lab_drift_max": round(max(drifts), 4),
            "seam": mean(seams),
            "seam_max": max((round(seam, 4) for seam in seams if seam is not None), default=None),
            "worst": worst_of(looks),
        }
    return figures


def real(studio: Studio) -> Figures | None:
    """Recorded voices drive one held-out person each, whose picture has a shut mouth; None without `--voices`."""
    if studio.voices is None:
        return None
    pieces = find_pieces(studio.voices, studio.folder / "pieces", frames=FRAMES)
    names = sorted({piece.recording for piece in pieces})
    cases = studio.cases("real", max(studio.clips, len(pieces)), people=1, shut=True)
    silence = studio.folder / "silence.wav"
    write_voice(silence, np.zeros(round(FRAMES / FPS * VOICE_RATE), np.float32))
    own, cross, still, moving, shut = [], [], [], [], []
    by_recording: dict[str, list[float]] = {name: [] for name in names}
    for number, case in enumerate(studio.each("real", cases)):
        piece = pieces[number % len(pieces)]
        spoken = _opening(studio, case, voices=(piece.voice,), frames=piece.frames)
        quiet = _opening(studio, case, voices=(silence,), frames=FRAMES)
        at = times(piece.frames, FPS)[1:]
        others = [
            correlation(spoken[: other.frames - 1], other.curve.opening(at[: other.frames - 1]))
            for other in pieces
            if other.recording != piece.recording
        ]
        own.append(correlation(spoken, piece.curve.opening(at)))
        by_recording[piece.recording].append(own[-1])
        cross.append(mean(others))
        still.append(float(quiet.std()))
        moving.append(float(spoken.std()))
        # 0 is as shut as the mouth gets while somebody speaks, 1 as open.
        low, high = np.quantile(spoken, (0.05, 0.95))
        shut.append(float((quiet.mean() - low) / max(float(high - low), 1e-6)))
        studio.details.setdefault("real", []).append(
            {"seed": case.seed, "recording": piece.recording, "start": piece.start, "own": own[-1], "cross": cross[-1]}
            | {"moved": moving[-1], "moved_silent": still[-1], "open_silent": shut[-1]}
        )
    return {
        "clips": len(cases),
        "recordings": len(names),
        "pieces": len(pieces),
        "own_mean": mean(own),
        "own_worst": least(own),
        "by_recording": {name: mean(values) for name, values in by_recording.items()},
        "cross_mean": mean(cross),
        "silent": ratio(mean(still), mean(moving)),
        "silent_opening": mean(shut),
    }


def speed(studio: Studio) -> Figures:
    """Seconds of a clip of 81 frames, and of six seconds of two people with turbo; the second run of each."""
    studio.say("speed: two runs each")
    (clip,) = studio.cases("speed", 1, people=1)
    (talk,) = studio.cases("speed", 1, people=2, frames=_SIX_SECONDS)
    seconds = {}
    for name, case, overrides in (("standard_81_frames", clip, ()), ("turbo_6_seconds", talk, TURBO)):
        for _ in range(2):
            seconds[name] = round(studio.generate(case, overrides=overrides).seconds, 3)
    return {"clips": 2} | seconds


def long_one(studio: Studio) -> Figures:
    """One person with a long voice: the same one to the end?"""
    return long_voices(studio, 1)


def long_two(studio: Studio) -> Figures:
    """Two people who both speak, for as long."""
    return long_voices(studio, 2)


#: In the order in which they are run.
KINDS: dict[str, Callable[[Studio], Figures | None]] = {
    kind.__name__: kind for kind in (detector, vae, one, two, swapped, silent, boxes, turbo, fps, long, real, speed)
}
#: Kinds of long voices, which take long: run only on request.
LONG_KINDS: dict[str, Callable[[Studio], Figures | None]] = {kind.__name__: kind for kind in (long_one, long_two)}


def _bound(groups: Sequence[Iterable[Row]]) -> Figures:
    clips = [tuple(rows) for rows in groups]
    rows = [row for clip in clips for row in clip]
    own, cross = mean(row.own for row in rows), mean(row.cross for row in rows)
    return {
        "clips": len(clips),
        "own_mean": own,
        "own_worst": least(row.own for row in rows),
        "worst_clip": least(by_clip(clips)),
        "cross_mean": cross,
        "margin": minus(own, cross),
    }


def _opening(studio: Studio, case: Case, **choices: Any) -> measures.Floats:
    pictures = generate_video(studio.service, case, **choices).frames
    opening: measures.Floats = mouth_openings(pictures, regions(pictures, case))[0, 1:]
    return opening
