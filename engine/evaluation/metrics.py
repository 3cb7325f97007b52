"""Figures of a talking video's frames: which mouth follows which voice, delays, movement, colours and seams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from engine.data import Window
from engine.evaluation.mouths import best_lag, correlation, mouth_openings

Pictures = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

#: A frame shows the mouth this many seconds after its own time (scripts/train_tiny/clips.py, SAMPLED_AT).
LEAD = 0.02
#: Least standard deviation of the opening (0 to 1) of a curve that a mouth can follow.
SPEAKS = 0.15
#: The same within one window of a long video, or a piece of a recording.
SPEAKS_HERE = 0.10
MAX_LAG = 5


@dataclass(frozen=True)
class Row:
    """One mouth of one video. `own` and `cross` are None for a silent voice, or if there is nobody else."""

    seed: int
    size: str
    person: int
    skin: int
    own: float | None
    cross: float | None
    #: Delay of the mouth in frames with the best agreement with its voice.
    lag: int | None
    #: Standard deviation and mean of the opening, relative to the box's height.
    moved: float
    opening: float


def times(frames: int, fps: float) -> npt.NDArray[np.float64]:
    """Return the times in seconds at which the mouths of `frames` frames are compared with their curves."""
    return np.arange(frames) / fps + LEAD


def own_and_cross(
    frames: Pictures,
    boxes: npt.ArrayLike,
    curves: npt.ArrayLike,
    *,
    seed: int = 0,
    skins: Sequence[int] = (),
) -> tuple[Row, ...]:
    """Compare each mouth with its own curve and, for two people, with the other's; frame 0 (the picture) is left out.

    `frames` is uint8 (F, H, W, 3), `boxes` (n, 4) in pixels are the same for all frames, `curves` (n, F) are the
    driving openings: row p drives mouth p.
    """
    driving = np.asarray(curves, np.float64)[:, 1:]
    openings_seen = mouth_openings(frames, boxes)[:, 1:]
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    rows = []
    for person, opening in enumerate(openings_seen):
        own, other = driving[person], driving[1 - person] if len(driving) == 2 else None
        speaks = own.std() > 0
        rows.append(
            Row(
                seed=seed,
                size=size,
                person=person,
                skin=skins[person] if skins else -1,
                own=correlation(opening, own) if speaks else None,
                cross=correlation(opening, other) if other is not None and other.std() > 0 else None,
                lag=best_lag(opening, own, MAX_LAG)[0] if speaks else None,
                moved=float(opening.std()),
                opening=float(opening.mean()),
            )
        )
    return tuple(rows)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are not None, to four digits; None if there are none."""
    present = [value for value in values if value is not None]
    return round(float(np.mean(present)), 4) if present else None


def least(values: Iterable[float | None]) -> float | None:
    """Return the least of the values that are not None, to four digits; None if there are none."""
    present = [value for value in values if value is not None]
    return round(float(min(present)), 4) if present else None


def minus(one: float | None, other: float | None) -> float | None:
    """Return the difference to four digits; None if one of the two is None."""
    return None if one is None or other is None else round(one - other, 4)


def ratio(one: float | None, other: float | None) -> float | None:
    """Return the quotient to four digits; None if one of the two is None, or the divisor is 0."""
    return None if one is None or not other else round(one / other, 4)


def lag_share(rows: Iterable[Row]) -> float | None:
    """Return the share of speaking mouths whose best lag is at most one frame."""
    return mean(float(abs(row.lag) <= 1) for row in rows if row.lag is not None)


def by_clip(clips: Iterable[Sequence[Row]]) -> list[float | None]:
    """Return the mean own-voice correlation of each clip."""
    return [mean(row.own for row in rows) for rows in clips]


def by_skin(rows: Iterable[Row]) -> dict[str, float | None]:
    """Return the mean own-voice correlation of each class of skin, from light to dark."""
    listed_rows = list(rows)
    return {
        str(skin): mean(row.own for row in listed_rows if row.skin == skin)
        for skin in sorted({r.skin for r in listed_rows})
    }


def by_size(rows: Iterable[Row]) -> dict[str, float | None]:
    """Return the mean own-voice correlation of each size of picture."""
    listed_rows = list(rows)
    return {
        size: mean(row.own for row in listed_rows if row.size == size) for size in sorted({r.size for r in listed_rows})
    }


def spread(parts: dict[str, float | None]) -> float | None:
    """Return by how much the worst part is below the best; None for fewer than two."""
    present = [value for value in parts.values() if value is not None]
    return round(max(present) - min(present), 4) if len(present) > 1 else None


def window_sync(
    frames: Pictures, boxes: npt.ArrayLike, curves: npt.ArrayLike, windows: Sequence[Window]
) -> list[list[float]]:
    """Return the own-voice correlations within each window's new frames: one list per window, of those who speak there.

    Frame 0 is left out. A window with fewer than 12 new frames has an empty list.
    """
    driving = np.asarray(curves, np.float64)
    openings_seen = mouth_openings(frames, boxes)
    results = []
    for window in windows:
        begin = max(window.start + window.motion, 1)
        part = slice(begin, window.start + window.motion + window.keep)
        pairs = [(opening[part], curve[part]) for opening, curve in zip(openings_seen, driving, strict=True)]
        results.append(
            [correlation(opening, curve) for opening, curve in pairs if len(curve) >= 12 and curve.std() >= SPEAKS_HERE]
        )
    return results


def lab_drift(frames: Pictures, fps: float) -> float:
    """Return the Euclidean distance of the mean colours (CIE Lab) of the last and the first second."""
    from skimage.color import rgb2lab

    second = max(1, round(fps))
    # Frame by frame, because Lab is float64.
    first, last = (
        np.mean([rgb2lab(frame).reshape(-1, 3).mean(0) for frame in part], 0)
        for part in (frames[:second], frames[-second:])
    )
    return float(np.linalg.norm(last - first))


def seam_ratio(frames: Pictures, windows: Sequence[Window]) -> float | None:
    """Return the mean change where windows meet, relative to the median change; None for one window.

    A change is the mean absolute difference of two consecutive frames.
    """
    differences = np.array([np.abs(after.astype(np.int16) - before).mean() for before, after in pairwise(frames)])
    seams = [window.start + window.motion - 1 for window in windows[1:] if window.start + window.motion < len(frames)]
    usual = float(np.median(differences))
    return float(differences[seams].mean()) / usual if seams and usual > 0 else None


def codec_errors(original: Pictures, decoded: npt.NDArray[np.floating], mouths: npt.ArrayLike) -> dict[str, float]:
    """Compare `decoded` (F, H, W, 3), 0 to 255, with the `original` frames of a codec.

    `mouths` (n, F, 4) are the mouths' boxes. Returns PSNR of the frames and of the mouths in dB, and the error of the
    frames' mean brightness, average and maximum, of 255.
    """
    error = decoded.astype(np.float64) - original
    squares = np.square(error).mean(-1)
    inside = np.zeros(squares.shape, bool)
    for boxes in np.asarray(mouths, np.float64):
        for frame, (x0, y0, x1, y1) in enumerate(boxes):
            inside[frame, max(int(y0), 0) : int(np.ceil(y1)), max(int(x0), 0) : int(np.ceil(x1))] = True
    drift = np.abs(error.mean((1, 2, 3)))
    return {
        "psnr": psnr_of(float(squares.mean())),
        "psnr_mouth": psnr_of(float(squares[inside].mean())),
        "drift_mean": float(drift.mean()),
        "drift_max": float(drift.max()),
    }


def psnr_of(square: float) -> float:
    """Return the PSNR in dB of pixels of 0 .. 255 with that mean squared error; at most 138 dB."""
    return float(20 * np.log10(255) - 10 * np.log10(max(square, 1e-9)))
