"""Config -> what judges a request's windows; a report -> what the video stores of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.assembly.dubbing import Dubbing
from engine.assembly.retakes import Retakes
from engine.config import Config
from engine.data import Inputs, Limit, Plan, Report
from engine.data.dub import scene_of
from engine.data.plan import cue_of
from engine.evaluation.judge import Judge
from engine.runtime.progress import Meter

if TYPE_CHECKING:
    import torch

#: Most windows whose figures are stored in a video; provenance with many more values is not read again.
_LISTED = 1000


def limits_of(config: Config) -> Mapping[str, Limit]:
    """Return the limit of each measure that a config asks for."""
    report = config.report
    sides = {
        "seam": (None, report.seam),
        "sharpness": (report.sharpness, report.noise),
        "sharpness_kept": (report.sharpness_kept, None),
        "identity": (None, report.identity),
        "identity_grown": (None, report.identity_grown),
        "colour": (None, report.colour),
        "colour_drift": (None, report.colour_drift),
        "still": (None, report.still),
        "blank": (None, report.blank),
        "mouth": (report.mouth, None),
    }
    return {name: Limit(*side) for name, side in sides.items() if side != (None, None)}


def make_retakes(
    config: Config, inputs: Inputs, plan: Plan, generator: torch.Generator, meter: Meter, dubbing: Dubbing
) -> Retakes:
    """Return what judges a request's windows and has them made again, as its config says."""
    report = config.report
    judge = None
    if report.enabled:
        pictures: Sequence[Any] = (inputs.image, *inputs.images)
        shows: Callable[[int], int] = partial(cue_of, plan.images)
        if plan.dub is not None:
            pictures, shows = dubbing.scenes, partial(scene_of, plan.dub)
        judge = Judge(pictures, plan, inputs.voices, limits_of(config), shows=shows)
    return Retakes(judge, config.retake.max, generator, meter.again)


def facts_of(report: Report | None) -> dict[str, Any]:
    """Return a report as plain JSON for the video's provenance.

    It has no times, so that the same request makes the same file, and lists by measure, so that a long video has few
    values; of a very long one only the range of each figure.
    """
    if report is None:
        return {}
    windows = report.windows
    figures = {name: [window.figures[name] for window in windows] for name in report.limits}
    if len(windows) > _LISTED:
        known = {name: [value for value in values if value is not None] for name, values in figures.items()}
        figures = {name: [min(values), max(values)] for name, values in known.items()}
    tried = {str(one.window): [attempt.badness for attempt in one.attempts] for one in windows if one.attempts}
    return {
        "judged": {
            "windows": len(windows),
            "below": list(report.below[:_LISTED]),
            "figures": figures,
            "unknown": dict(report.unknown),
            **({"badness_of_attempts": dict(list(tried.items())[:_LISTED])} if tried else {}),
        }
    }
