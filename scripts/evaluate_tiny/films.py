"""Cases -> films: videos that the engine makes, read back from their MP4 files."""

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
from engine.evaluation.frames import read_film
from engine.evaluation.metrics import Floats, Pictures, Row, own_and_cross
from engine.evaluation.mouths import motion_energy
from engine.media.audio import VOICE_RATE, decode
from scripts.evaluate_tiny.cases import Case


@dataclass(frozen=True)
class Film:
    """A video as anybody sees it: frames uint8 (F, H, W, 3), with the plan it was made by and what it took."""

    frames: Pictures
    plan: Plan
    seconds: float
    #: float32 mono, 16 kHz; None where it was not asked for.
    sound: Floats | None = None


def film(
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
) -> Film:
    """Have `service`, whose sink is a folder, make a video of `case`, and read it back.

    `voices` are those of the people from left to right, the case's own unless given; `frames` and `fps` are the case's
    and the model's. With `boxes` the speakers are named from right to left, each by a box around the face; without,
    regions are automatic. `overrides` are of this request alone. `progress` is told how it goes; the file moves to the
    folder `keep` where there is one, and is not kept otherwise; `hear` reads the sound as well. Raises EngineError.
    """
    heard = [str(voice) for voice in (case.voices if voices is None else voices)]
    speakers = [Speaker(voice) for voice in heard]
    if boxes:
        speakers = [Speaker(voice, Region(_box(face))) for voice, face in zip(heard, apart(case.faces), strict=True)][
            ::-1
        ]
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
    shown = read_film(path)
    sound = decode(path, VOICE_RATE, "mono") if hear else None
    if keep is None:
        path.unlink()
    else:
        keep.mkdir(parents=True, exist_ok=True)
        shutil.move(path, keep / f"{case.image.stem}.mp4")
    return Film(shown, delivery.plan, seconds, sound)


def judge(shown: Pictures, case: Case, *, fps: float, swapped: bool = False) -> tuple[Row, ...]:
    """Compare each mouth with the curve of its voice and the other's; `swapped`: the voices were exchanged."""
    driving = case.driving(len(shown), fps)
    if swapped:
        driving = driving[::-1]
    return own_and_cross(shown, regions(shown, case), driving, seed=case.seed, skins=case.skins)


def regions(shown: Pictures, case: Case) -> Floats:
    """Return (n, 4): the boxes of the picture's mouths, in pixels of the video, which hold for all its frames."""
    return _scaled(case.mouths[:, 0], shown, case)


def liveliness(shown: Pictures, case: Case) -> float:
    """Return how much heads and shoulders move without their mouths: the mean motion energy, frame 0 left out."""
    return float(motion_energy(shown[1:], _scaled(case.faces, shown, case), regions(shown, case)).mean())


def apart(faces: npt.ArrayLike) -> Floats:
    """Cut the boxes (n, 4) of neighbours, from left to right, in the middle of what both would have."""
    found = np.array(faces, np.float32)
    for left, right in pairwise(found):
        if left[2] > right[0]:
            left[2] = right[0] = (left[2] + right[0]) / 2
    return found


def _box(face: Floats) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(edge) for edge in face)
    return x0, y0, x1, y1


def _scaled(boxes: Floats, shown: Pictures, case: Case) -> Floats:
    height, width = shown.shape[1:3]
    if width * case.size[1] != height * case.size[0]:
        raise EngineError(
            f"a picture of {case.size[0]} x {case.size[1]} became a video of {width} x {height}",
            field="resolution",
            hint="choose --sizes that the model's resolution has the shape of",
        )
    return np.asarray(boxes * (width / case.size[0]), np.float32)
