"""Long voices: is it the same person to the end, is the sound in sync, and does the cost per window stay the same?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import pairwise
from statistics import linear_regression, median
from typing import Any

import numpy as np
from PIL import Image

from engine.data import Plan, Progress
from engine.evaluation.likeness import (
    Drift,
    Pictures,
    WindowLook,
    colour_distance,
    drift_of,
    window_looks,
)
from engine.evaluation.metrics import mean, minus, seam_ratio, window_sync
from engine.evaluation.mouths import Floats
from engine.media.audio import VOICE_RATE, decode
from engine.runtime.memory import status
from engine.stages.windows import window_shares
from scripts.evaluate_tiny.cases import FPS, Case
from scripts.evaluate_tiny.films import regions
from scripts.evaluate_tiny.studio import Studio

Figures = dict[str, Any]

#: Seconds at the end of a video whose sound is compared with the voices, and the largest lag that is searched.
_END, _LAG = 5.0, 0.5
#: First windows that do not count for time and memory, because caches and allocators grow.
_WARM = 2
#: Figures of WindowLook that are reported for each window.
_BY_WINDOW = ("sharpness", "identity", "structure")
#: The worst of several videos: the least of these, and the largest of all other figures of Drift.
_LEAST = ("sharpness_kept", "sharpness")


class Pace:
    """Measures during a generation, from its progress: CPU seconds and resident memory of this process, by window."""

    def __init__(self) -> None:
        """Start without measurements."""
        self._windows: list[tuple[float, int]] = []

    def __call__(self, progress: Progress) -> None:
        """Measure when a window begins, and when the last one has ended."""
        begun = progress.stage == "encode" and progress.window > len(self._windows)
        ended = progress.stage == "keep" and progress.windows == len(self._windows)
        if begun or ended:
            self._read()

    def _read(self) -> None:
        kib = 0
        with suppress(OSError):
            kib = status("VmRSS")
        # CPU time, not wall-clock time: other load on the machine would count.
        self._windows.append((time.process_time(), kib))

    @property
    def seconds(self) -> list[float]:
        """CPU seconds of each whole window, without the last one, which may be short."""
        at = [seconds for seconds, _ in self._windows]
        return [round(after - before, 3) for before, after in pairwise(at)][:-1]

    @property
    def memory(self) -> list[float]:
        """MiB of resident memory at the start of each window, and at the end."""
        return [round(kib / 1024, 1) for _, kib in self._windows]

    def figures(self) -> Figures:
        """Return how the second half of the windows compares with the first, and by how much memory grows a window.

        The first two windows do not count. Empty for fewer than six.
        """
        seconds, memory = self.seconds[_WARM:], self.memory[_WARM:]
        if len(seconds) < 4:
            return {}
        half = len(seconds) // 2
        return {
            "seconds_ratio": round(median(seconds[-half:]) / median(seconds[:half]), 4),
            "mib_a_window": round(linear_regression(range(len(memory)), memory).slope, 4),
            "memory_ratio": round(memory[-1] / memory[0], 4) if memory[0] else None,
        }


def case_picture(case: Case, frames: Pictures) -> Pictures:
    """Return a case's picture at the size of its video."""
    height, width = frames.shape[1:3]
    with Image.open(case.image) as image:
        picture = image.convert("RGB")
    return np.asarray(picture if picture.size == (width, height) else picture.resize((width, height)), np.uint8)


def case_looks(frames: Pictures, case: Case, plan: Plan) -> tuple[WindowLook, ...]:
    """Compare each window of a case's video with its picture."""
    return window_looks(frames, case_picture(case, frames), regions(frames, case), window_shares(plan))


def sound_lag(sound: Floats, voices: Sequence[Floats], seconds: float) -> float:
    """Return by how many seconds the sound of a video of `seconds` is late at its end, against the mixed `voices`.

    All are mono of 16 kHz. The last five seconds are compared, to half a second to either side.
    """
    length = round(seconds * VOICE_RATE)
    mixed = np.zeros(length, np.float32)
    for voice in voices:
        mixed[: min(length, len(voice))] += voice[:length]
    reach, begin = round(_LAG * VOICE_RATE), max(0, length - round(_END * VOICE_RATE))
    reference = mixed[begin:]
    around = np.zeros(len(reference) + 2 * reach, np.float32)
    searched = sound[max(0, begin - reach) : length + reach]
    at = max(0, reach - begin)
    around[at : at + len(searched)] = searched
    size = len(around) + len(reference)
    spectrum = np.fft.rfft(around, size) * np.conj(np.fft.rfft(reference, size))
    return (int(np.fft.irfft(spectrum, size)[: 2 * reach + 1].argmax()) - reach) / VOICE_RATE


def long_voices(studio: Studio, people: int) -> Figures:
    """Generate videos of `people` for `studio.long_voice` seconds each, and return the figures of their windows."""
    frames = round(studio.long_voice * FPS)
    name = f"long_voice_{people}"
    cases = studio.cases(name, studio.clips, people=people, frames=frames, even=people == 1, drawn=1)
    rows = studio.details.setdefault(name, [])
    measured = {row["seed"] for row in rows}
    missing = [case for case in cases if case.seed not in measured]
    for case in studio.each(f"{studio.long_voice} s, people {people}", missing, line=1):
        if rows and studio.is_over():
            studio.say(f"{name}: the time is over, {len(rows)} of {len(cases)} clips are measured")
            break
        rows.append(_filmed(studio, case, people))
        # Hours may follow.
        studio.keep_details()
    return _summary(rows)


def _filmed(studio: Studio, case: Case, people: int) -> Figures:
    pace = Pace()
    video = studio.generate(case, progress=pace, keep=studio.keep, hear=True)
    assert video.sound is not None
    plan, pictures = video.plan, video.frames
    looks = case_looks(pictures, case, plan)
    sync = window_sync(pictures, regions(pictures, case), case.driving(len(pictures)), plan.windows)
    voices = [decode(path, VOICE_RATE, "mono") for path in case.voices]
    return {
        "seed": case.seed,
        "people": people,
        "size": f"{pictures.shape[2]}x{pictures.shape[1]}",
        "skins": list(case.skins),
        "frames": len(pictures),
        "frames_off": len(pictures) - case.frames,
        "sound_off": round(len(video.sound) / VOICE_RATE - len(pictures) / FPS, 4),
        "sound_lag": round(sound_lag(video.sound, voices, len(pictures) / FPS), 4),
        "seam": seam_ratio(pictures, plan.windows),
        "drift": asdict(drift_of(looks)),
        "windows": {
            **{figure: [round(getattr(look, figure), 4) for look in looks] for figure in _BY_WINDOW},
            "colour": [round(colour_distance(look, looks[0]), 4) for look in looks],
            "sync": [mean(window) for window in sync],
            "seconds": pace.seconds,
            "mib": pace.memory,
        },
        "pace": pace.figures(),
    }


def worst_of(drifts: Sequence[Drift]) -> Figures:
    """Return the worst of each figure of some videos."""
    rows = [asdict(drift) for drift in drifts]
    return {
        key: round((min if key in _LEAST else max)(row[key] for row in rows), 4) for key in Drift.__dataclass_fields__
    }


def _summary(rows: Sequence[Figures]) -> Figures:
    def windows(figure: str) -> list[float | None]:
        most = max(len(row["windows"][figure]) for row in rows)
        return [mean(row["windows"][figure][k] for row in rows if k < len(row["windows"][figure])) for k in range(most)]

    drifts = [Drift(**row["drift"]) for row in rows]
    sync = windows("sync")
    values = [value for value in sync if value is not None]
    paces = [row["pace"] for row in rows if row["pace"]]
    return {
        "clips": len(rows),
        "seconds_each": round(rows[0]["frames"] / FPS, 2),
        "sizes": sorted({row["size"] for row in rows}),
        "worst": worst_of(drifts),
        "mean": {key: mean(getattr(drift, key) for drift in drifts) for key in Drift.__dataclass_fields__},
        "windows": {figure: windows(figure) for figure in (*_BY_WINDOW, "colour")} | {"sync": sync},
        "sync": mean(values),
        "sync_below": minus(mean(values), min(values)) if values else None,
        "seam": mean(row["seam"] for row in rows),
        "frames_off": max(abs(row["frames_off"]) for row in rows),
        "sound_off": max(abs(row["sound_off"]) for row in rows),
        "sound_lag": max(abs(row["sound_lag"]) for row in rows),
        "pace": {key: round(median(pace[key] for pace in paces), 4) for key in paces[0]} if paces else {},
    }
