"""Config of the report on a video's windows, and of making windows again."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import II

from engine.config.ranges import CORRELATION, FIGURE, within


@dataclass
class ReportConfig:
    """Whether a generation judges its windows, and the limits of their figures (docs/reports.md)."""

    #: Whether windows are judged.
    enabled: bool = True
    #: Most that a window's first frame may differ from the last one before, in parts of the usual change of a frame.
    #: null: not measured.
    seam: float | None = field(default=II("model.report.seam"), metadata=FIGURE)
    #: Least contrast of fine lines, in parts of the picture's. null: not measured.
    sharpness: float | None = field(default=II("model.report.sharpness"), metadata=FIGURE)
    #: Most contrast of fine lines, in parts of the picture's: noise has more than any picture. null: no limit.
    noise: float | None = field(default=II("model.report.noise"), metadata=FIGURE)
    #: Least contrast of fine lines, in parts of the first window's. null: not measured.
    sharpness_kept: float | None = field(default=II("model.report.sharpness_kept"), metadata=FIGURE)
    #: Most distance of a face from the picture's (0: the same, 1: another person). null: not measured.
    identity: float | None = field(default=II("model.report.identity"), metadata=FIGURE)
    #: Most growth of that distance since the first window. null: not measured.
    identity_grown: float | None = field(default=II("model.report.identity_grown"), metadata=FIGURE)
    #: Most distance of the colours of 64 parts from the picture's, CIE Lab. null: not measured.
    colour: float | None = field(default=II("model.report.colour"), metadata=FIGURE)
    #: Most distance of these colours from the first window's, CIE Lab. null: not measured.
    colour_drift: float | None = field(default=II("model.report.colour_drift"), metadata=FIGURE)
    #: Most seconds of speech without any movement. null: not measured.
    still: float | None = field(default=II("model.report.still"), metadata=FIGURE)
    #: Most frames with almost no contrast, such as black ones. null: not measured.
    blank: float | None = field(default=II("model.report.blank"), metadata=FIGURE)
    #: Least correlation of a mouth with its voice, -1 to 1. null: not measured.
    mouth: float | None = field(default=II("model.report.mouth"), metadata=CORRELATION)


@dataclass
class RetakeConfig:
    """Whether a window with a figure outside its limit is made again, with another seed."""

    #: How often a window may be made again; the best of its tries is kept. 0: never.
    max: int = field(default=0, metadata=within(0, 10))
