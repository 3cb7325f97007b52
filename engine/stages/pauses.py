"""Frames and loudness -> Windows that meet where nobody speaks (windows=pauses). Computes no frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.cancel import check
from engine.data import Loudness, Seam, Seams, Window
from engine.data.cancel import CancelToken
from engine.media.quiet import loudness_at
from engine.stages.windows import TEMPORAL, plan_windows, windows_between

if TYPE_CHECKING:
    import numpy.typing as npt

#: A cut is in a pause if no voice is louder than this, in dB relative to its speech, within `REACH` seconds of the cut.
PAUSE, REACH = -25.0, 0.1
#: Quieter cuts are equally good, in dB.
_SILENCE = -40.0
#: Windows that a cut in speech may cost at most to avoid: with less than two, each further window avoids one of them.
_WORTH = 1.5
#: Cuts between two checks of a cancel token.
_CHECK_EVERY = 1024

#: What a plan up to a cut costs, compared in order: windows and cuts in speech, how loud the cuts are, how early.
_Cost = tuple[float, float, int]


def plan_in_pauses(
    frames: int,
    loudness: Loudness,
    *,
    fps: float,
    window: int,
    motion: int,
    cancel: CancelToken | None = None,
) -> tuple[tuple[Window, ...], Seams]:
    """Cover `frames` frames at `fps` with windows as `plan_windows` does, but let them meet in pauses of speech.

    All windows except the last have at least half of the new frames that they could have, so there are at most about
    twice as many. A window is added only if that avoids a cut in speech. Then cuts are as quiet as possible, and then
    as late as possible: without a voice the windows are those of `plan_windows`. Raises Cancelled once `cancel` is set.
    """
    fixed = plan_windows(frames, window=window, motion=motion, cancel=cancel)
    # A cut before frame c lies between the times of two frames.
    candidates = np.arange(1, frames, TEMPORAL, dtype=np.float64)
    levels = loudness_at(loudness, (candidates - 0.5) / fps, max(REACH, 1 / fps))
    cuts = [] if frames <= window else _best_cuts(frames, levels, window=window, motion=motion, cancel=cancel)
    fixed_cuts = [one.start + one.motion for one in fixed[1:]]
    windows = windows_between(cuts, frames, motion=motion)
    seams = tuple(
        Seam(index, cut / fps, round(float(level := levels[(cut - 1) // TEMPORAL]), 1), bool(level <= PAUSE))
        for index, cut in enumerate(cuts, start=1)
    )
    return windows, Seams(
        seams,
        windows=len(windows),
        computed=sum(one.frames for one in windows),
        fixed_windows=len(fixed),
        fixed_computed=sum(one.frames for one in fixed),
        fixed_pauses=sum(bool(levels[(cut - 1) // TEMPORAL] <= PAUSE) for cut in fixed_cuts),
    )


def tell_pauses(seams: Seams) -> list[str]:
    """Return a warning about cuts that are in speech."""
    loud = [f"{seam.seconds:.2f}" for seam in seams.seams if not seam.pause]
    if not loud:
        return []
    where = f"{', '.join(loud[:5])}{', ...' if len(loud) > 5 else ''} s"
    cuts = f"{len(loud)} of {len(seams.seams)} cuts are in speech ({where})"
    return [f"windows=pauses: {cuts}, because there is no pause within reach of a window"]


def _best_cuts(
    frames: int, levels: npt.NDArray[np.float32], *, window: int, motion: int, cancel: CancelToken | None
) -> list[int]:
    """Return the frames before which windows begin, without 0, by dynamic programming over all possible cuts.

    Windows are 4n + 1 frames long, so a cut is before a frame 4n + 1; n is its number here.
    """
    costs = [
        (1.0 + _WORTH * (level > PAUSE), round(max(0.0, (float(level) - _SILENCE) / -_SILENCE), 3)) for level in levels
    ]
    longest = (window - motion) // TEMPORAL
    shortest = -(-longest // 2)
    first = (window - 1) // TEMPORAL
    best: list[_Cost | None] = [None] * len(costs)
    before = [-1] * len(costs)
    for cut, (weight, loud) in enumerate(costs):
        if cut % _CHECK_EVERY == 0:
            check(cancel, "plan")
        if -(-first // 2) <= cut <= first:
            best[cut] = (weight, loud, -cut)
            continue
        for previous in range(max(0, cut - longest), cut - shortest + 1):
            if (known := best[previous]) is not None:
                cost = (known[0] + weight, known[1] + loud, known[2] - cut)
                if (found := best[cut]) is None or cost < found:
                    best[cut], before[cut] = cost, previous
    # The last window has the rest, however short.
    ends = [cut for cut in range(len(costs)) if frames - (TEMPORAL * cut + 1) <= window - motion]
    cut = min((cut for cut in ends if best[cut] is not None), key=lambda number: best[number] or (0.0, 0.0, 0))
    cuts = []
    while cut >= 0:
        cuts.append(TEMPORAL * cut + 1)
        cut = before[cut]
    return cuts[::-1]
