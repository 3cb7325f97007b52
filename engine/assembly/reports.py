"""Config -> what judges a request's windows."""

from __future__ import annotations

from collections.abc import Mapping

from engine.config import Config
from engine.data import Inputs, Limit, Plan
from engine.evaluation.judge import Judge


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


def make_judge(config: Config, inputs: Inputs, plan: Plan) -> Judge | None:
    """Return the judge of a request's windows; None if the config asks for none."""
    return Judge(inputs.image, plan, inputs.voices, limits_of(config)) if config.report.enabled else None
