"""Generate videos of cases with the engine, and read them back from their MP4 files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt

from engine.components import ProgressCallback, Service
from engine.data import Plan, Region, Request, Speaker, Timing
from engine.errors import EngineError
from engine.evaluation.frames import read_video
from engine.evaluation.metrics import Floats, Pictures, Row, own_and_cross
from engine.evaluation.mouths import motion_energy
from engine.media.audio import VOICE_RATE, decode
from scripts.evaluate_tiny.cases import Case


@dataclass(frozen=True)
class GeneratedVideo:
    """A video read from its file: frames uint8 (F, H, W, 3), with its plan and the seconds it took."""

    frames: Pictures
    plan: Plan
    seconds: float
    #: float32 mono, 16 kHz; None if it was not requested.
    sound: Floats | None = None
    #: Forwards that were computed, if they were counted.
    forwards: int | None = None


def generate_video(
    service: Service,
    case: Case,
    *,
    voices: Sequence[Path] | None = None,
    frames: int | None = None,
    fps: float | None = None,
    timing: Timing = "direct",
    boxes: bool = False,
    overrides: Sequence[str] = (),
    progress: ProgressCallback | None = None,
    keep: Path | None = None,
    hear: bool = False,
) -> GeneratedVideo:
    """Generate a video of `case` with `service`, whose sink is a folder, and read it back.

    `voices` are those of the people from left to right, by default the case's; `frames` and `fps` default to the case's
    and the model's. With `boxes` the speakers are listed from right to left, each with a box around the face; otherwise
    regions are automatic. `overrides` apply only to this request. `progress` receives the progress; the file is moved
    to the folder `keep`, or deleted without it; `hear` also reads the sound. Raises EngineError.
    """
    voice_files = [str(voice) for voice in (case.voices if voices is None else voices)]
    speakers = [Speaker(voice) for voice in voice_files]
    if boxes:
        speakers = [
            Speaker(voice, Region(_box(face))) for voice, face in zip(voice_files, apart(case.faces), strict=True)
        ][::-1]
    request = Request(
        prompt=case.prompt,
        image=str(case.image),
        speakers=tuple(speakers),
        seed=case.seed,
        frames=case.frames if frames is None else frames,
        fps=fps,
        timing=timing,
        overrides=tuple(overrides),
    )
    began = perf_counter()
    delivery = service.generate(request, progress=progress)
    seconds = perf_counter() - began
    if delivery.address is None:
        raise EngineError("the sink keeps no file", field="sink", hint="leave it at sink=disk")
    path = Path(delivery.address)
    pictures = read_video(path)
    sound = decode(path, VOICE_RATE, "mono") if hear else None
    if keep is None:
        path.unlink()
    else:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.move(path, keep / f"{case.image.stem}.mp4")
    return GeneratedVideo(pictures, delivery.plan, seconds, sound, delivery.forwards)


def mouth_rows(pictures: Pictures, case: Case, *, fps: float, swapped: bool = False) -> tuple[Row, ...]:
    """Compare each mouth with the curves of its own voice and of the other; `swapped`: the voices were exchanged."""
    driving = case.driving(len(pictures), fps)
    if swapped:
        driving = driving[::-1]
    return own_and_cross(pictures, regions(pictures, case), driving, seed=case.seed, skins=case.skins)


def regions(pictures: Pictures, case: Case) -> Floats:
    """Return (n, 4): the boxes of the picture's mouths in pixels of the video, the same for all frames."""
    return _scaled(case.mouths[:, 0], pictures, case)


def liveliness(pictures: Pictures, case: Case) -> float:
    """Return how much heads and shoulders move, without mouths: the mean motion energy, without frame 0."""
    return float(motion_energy(pictures[1:], _scaled(case.faces, pictures, case), regions(pictures, case)).mean())


def apart(faces: npt.ArrayLike) -> Floats:
    """Separate overlapping boxes (n, 4) of neighbours, from left to right, in the middle of the overlap."""
    boxes = np.array(faces, np.float32)
    for left, right in pairwise(boxes):
        if left[2] > right[0]:
            left[2] = right[0] = (left[2] + right[0]) / 2
    return boxes


def _box(face: Floats) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(edge) for edge in face)
    return x0, y0, x1, y1


def _scaled(boxes: Floats, pictures: Pictures, case: Case) -> Floats:
    height, width = pictures.shape[1:3]
    if width * case.size[1] != height * case.size[0]:
        raise EngineError(
            f"a picture of {case.size[0]} x {case.size[1]} became a video of {width} x {height}",
            field="resolution",
            hint="choose --sizes with the shape of the model's resolution",
        )
    return np.asarray(boxes * (width / case.size[0]), np.float32)
