"""Measure a delivered video: its seams, its colours, the stability of people and, of drawn people, the lip sync.

The measures are those of `scripts/evaluate_tiny`, which draws the people and so knows where their mouths are; here the
mouths are detected.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.assembly.plan_request import fetch_media
from engine.data import Media, Plan, Request, Seat
from engine.errors import EngineError
from engine.evaluation.bars import likeness_bars
from engine.evaluation.frames import read_video
from engine.evaluation.likeness import Drift, drift_of, window_looks
from engine.evaluation.metrics import Pictures, Row, lab_drift, mean, own_and_cross, seam_ratio, times
from engine.evaluation.mouths import find_mouths
from engine.evaluation.voices import LEVEL, Voice, levelled, mouth_of
from engine.media.audio import VOICE_RATE, decode
from engine.media.canvas import apply_canvas
from engine.media.picture import read_picture
from engine.plugin.manager import installed
from engine.redaction import scrub
from engine.service import EngineService
from engine.stages.windows import window_shares

#: Minimum number of frames of a curve.
_LEAST = 12


#: By the figure's name in Drift.
_BARS = {bar.path.rpartition("/")[2]: bar for bar in likeness_bars("", "")}


class _DoesNotApply(EngineError):
    """Explains why a measure has no value."""


def measure(path: Path | None, request: Request, plan: Plan, service: EngineService) -> dict[str, dict[str, Any]]:
    """Return {"value": ..., "reason": None} for each measure, or the value None with a reason.

    `path` is the video that `service` made of `request` as in `plan`; None: it is not on this machine. `seam_ratio` and
    `lab_drift` are those of `evaluation.metrics`. `lip_sync` is the mean correlation of mouths with their own voices,
    -1 to 1. `lip_lag` is the delay in frames with the best correlation; of several people, the largest delay.

    The others are those of `evaluation.likeness.Drift`, of the worst window: `sharpness_kept` and `sharpness` relative
    to the first window and the picture, `identity` and `identity_grown` of faces, `structure_lost` and `colour_drift`
    since the first window. Of drawn people the face is found by its mouth, and `holds` reports whether the bar of
    `likeness_bars` is reached. Of other people the whole region is measured, and there is no `holds`.
    """
    with tempfile.TemporaryFile() as file:
        # A long video has gigabytes of frames, of which only few are needed at the same time.
        video = None if path is None else read_video(path, file)
        return _figures(video, request, plan, service)


def _figures(video: Pictures | None, request: Request, plan: Plan, service: EngineService) -> dict[str, dict[str, Any]]:
    def entry(figure: Callable[[Pictures], float | None]) -> dict[str, Any]:
        try:
            if video is None:
                raise _DoesNotApply("the video is not in this folder")
            value = figure(video)
        except EngineError as error:
            return {"value": None, "reason": scrub(error.what)}
        if value is None:
            return {"value": None, "reason": "nothing moves in it"}
        return {"value": round(value, 4), "reason": None}

    rows: list[Row] = []

    def sync(frames: Pictures) -> float | None:
        rows.extend(_lips(frames, request, plan, service))
        return mean(row.own for row in rows)

    def lag(frames: Pictures) -> float | None:
        lags = [row.lag for row in rows if row.lag is not None]
        if not lags:
            raise _DoesNotApply("see lip_sync")
        return max(lags, key=abs)

    drifts: list[Drift] = []

    def drift(name: str, *, first: bool = True) -> dict[str, Any]:
        def figure(frames: Pictures) -> float:
            if first and len(plan.windows) == 1:
                raise _DoesNotApply("there is only one window to compare")
            if not drifts:
                drifts.append(_look(frames, request, plan, service))
            return float(getattr(drifts[0], name))

        result = entry(figure)
        bar = _BARS[name]
        if result["value"] is not None and service.config.model.packaged:
            result["holds"] = bar.holds(result["value"])
        return result

    return {
        "seam_ratio": entry(lambda frames: _seams(frames, plan)),
        "lab_drift": entry(lambda frames: _drift(frames, plan)),
        "sharpness_kept": drift("sharpness_kept"),
        "sharpness": drift("sharpness", first=False),
        "identity": drift("identity", first=False),
        "identity_grown": drift("identity_grown"),
        "structure_lost": drift("structure_lost"),
        "colour_drift": drift("colour"),
        "lip_sync": entry(sync),
        "lip_lag": entry(lag),
    }


def _seams(frames: Pictures, plan: Plan) -> float | None:
    if len(plan.windows) == 1:
        raise _DoesNotApply("one window has no seam")
    if plan.timing == "native":
        raise _DoesNotApply("with timing=native windows meet between frames that are not shown")
    return seam_ratio(frames, plan.windows)


def _drift(frames: Pictures, plan: Plan) -> float:
    if len(frames) < 2 * plan.fps:
        raise _DoesNotApply("shorter than two seconds")
    return lab_drift(frames, plan.fps)


def _look(frames: Pictures, request: Request, plan: Plan, service: EngineService) -> Drift:
    shares = window_shares(plan)
    with _fetched(request, service) as media:
        picture = apply_canvas(read_picture(media.image, field="request.image"), plan.canvas)
    seats = np.array([seat.box for seat in plan.seats], np.float64).reshape(-1, 4)
    if service.config.model.packaged and len(frames) >= _LEAST:
        # The mouth's place in the first window: later movement of the face must show in the measure.
        return drift_of(window_looks(frames, picture, find_mouths(frames[shares[0]], seats), shares))
    return drift_of(window_looks(frames, picture, (), shares, seats=seats))


def _lips(frames: Pictures, request: Request, plan: Plan, service: EngineService) -> tuple[Row, ...]:
    if not service.config.model.packaged:
        raise _DoesNotApply("mouths are only measured for the drawn people of the embedded model")
    if len(frames) < _LEAST:
        raise _DoesNotApply(f"fewer than {_LEAST} frames")
    speaking = [seat for seat in plan.seats if not seat.silent]
    if not speaking:
        raise _DoesNotApply("nobody speaks")
    curves = _openings(request, speaking, times(len(frames), plan.fps), service)
    try:
        return own_and_cross(frames, find_mouths(frames, [seat.box for seat in speaking]), curves)
    except ValueError as error:
        raise _DoesNotApply(str(error)) from error


def _openings(
    request: Request, seats: list[Seat], seconds: npt.NDArray[np.float64], service: EngineService
) -> npt.NDArray[np.float32]:
    """Return (n, F): how far the mouths of the people in `seats` should be open at `seconds`."""
    curves = []
    with _fetched(request, service) as media:
        for seat in seats:
            voice = media.voices[seat.speaker]
            assert voice is not None, "a seat that is not silent has a voice"
            samples = decode(voice, VOICE_RATE, "mono", cut=media.cuts[seat.speaker])
            analysed = Voice(samples, *mouth_of(levelled(samples, LEVEL)))
            curves.append(analysed.opening(seconds - seat.begins))
    return np.stack(curves)


@contextmanager
def _fetched(request: Request, service: EngineService) -> Iterator[Media]:
    with tempfile.TemporaryDirectory(prefix="multitalk-") as folder:
        yield fetch_media(request, installed(), service.access, Path(folder))
