"""Read the runs of a sweep's folder: the settings and the figures of each."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import RequestError, plain

#: Files of a run.
CONFIG = "config.yaml"
METRICS = "metrics.json"
FORMAT = 1
#: Maximum size of metrics.json; a run writes a few kB.
_MOST_BYTES = 4 * 2**20
UNFINISHED = "it is still running, or was killed before it could report an error"


@dataclass(frozen=True)
class Figure:
    """One column of figures."""

    #: Keys in metrics.json, joined by dots.
    place: str
    title: str
    about: str
    #: The best value: "least", "most", "zero" (the nearest to it), or "" if no value is best.
    better: str
    digits: int = 2
    scale: float = 1.0
    #: Required range for drawn people (docs/long.md); "": none. The run itself records whether it is met.
    bar: str = ""


FIGURES = (
    Figure("timings.total_without_load", "Work, s", "seconds, without loading weights", "least"),
    Figure("timings.denoise", "Denoising, s", "seconds in the network", "least"),
    Figure("timings.load", "Loading, s", "about zero if the previous run had the same weights", ""),
    Figure("forwards", "Forwards", "of the network, before any step cache", "least", 0),
    Figure("measures.seam_ratio", "Seams", "change between windows, relative to that between frames", "least"),
    Figure("measures.lab_drift", "Colour drift", "from the first second to the last, in CIE Lab", "least"),
    Figure(
        *(
            "measures.sharpness_kept",
            "Sharpness kept",
            "fine details of the worst window, relative to the first window",
            "most",
        ),
        bar=">= 0.9",
    ),
    Figure(
        *("measures.sharpness", "Sharpness", "fine details of the worst window, relative to the picture", "most"),
        bar=">= 0.6",
    ),
    Figure(
        *(
            "measures.identity",
            "Face",
            "distance of the worst window's face from the picture's; 1: a stranger",
            "least",
        ),
        bar="<= 0.45",
    ),
    Figure(
        *("measures.identity_grown", "Face, growth", "growth of that distance since the first window", "least"),
        bar="<= 0.25",
    ),
    Figure(
        *(
            "measures.structure_lost",
            "Structure lost",
            "loss of similarity to the picture (SSIM) since the first window",
            "least",
        ),
        bar="<= 0.1",
    ),
    Figure(
        *(
            "measures.colour_drift",
            "Colours by place",
            "difference of the worst window from the first, CIE Lab",
            "least",
        ),
        bar="<= 3",
    ),
    Figure("measures.lip_sync", "Lip sync", "correlation of mouths with their voices, at most 1", "most"),
    Figure("measures.lip_lag", "Lip lag", "frames by which mouths are late", "zero", 0),
    Figure("bytes", "File, kB", "size of the video", "", 0, 1e-3),
)


@dataclass(frozen=True)
class Run:
    """One run: `figures` by their place, and `reasons` for those without a value."""

    #: Folder, relative to the sweep's, with slashes.
    name: str
    #: "done", "failed" or "unfinished".
    status: str
    error: str = ""
    #: File in the folder.
    video: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    #: Figures outside their required range.
    missed: frozenset[str] = frozenset()


def read_runs(folder: Path) -> list[Run]:
    """Return the runs below `folder`, in the order of their numbers. Raises RequestError if there are none."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder", field="DIR", hint="give the folder of a sweep")
    folders = {path.parent for path in folder.rglob(METRICS)}
    if not folders:
        raise RequestError(f"{folder} contains no runs", field="DIR", hint="make some: multitalk generate ... -m ...")
    return [_read(path, path.relative_to(folder).as_posix()) for path in sorted(folders, key=_natural)]


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the keys of overrides that differ between `runs`, in their original order."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({json.dumps(run.overrides.get(key)) for run in runs if run.overrides}) > 1]


def best(runs: Sequence[Run], figure: Figure) -> set[str]:
    """Return the names of the runs that are best in `figure`; empty if it has no best value or all are equal."""
    values = {run.name: run.figures[figure.place] for run in runs if figure.place in run.figures}
    if not figure.better or len(set(values.values())) < 2:
        return set()
    ranks = {"least": lambda value: value, "most": lambda value: -value, "zero": abs}
    ranked = {name: ranks[figure.better](value) for name, value in values.items()}
    return {name for name, rank in ranked.items() if rank == min(ranked.values())}


def _read(folder: Path, name: str) -> Run:
    try:
        path = folder / METRICS
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has over {_MOST_BYTES} bytes")
        raw = json.loads(path.read_text("utf-8"))
        metrics = _escaped(raw)
        if metrics["format"] != FORMAT:
            raise ValueError(f"format {str(metrics['format'])[:40]}")
        # The video is searched under its unescaped name.
        return _run({**metrics, "video": raw.get("video")}, folder, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        return Run(name, "failed", plain(f"its metrics.json cannot be read ({type(error).__name__}: {error})"))


def _run(metrics: Mapping[str, Any], folder: Path, name: str) -> Run:
    overrides = dict(metrics["overrides"])
    if metrics["status"] == "unfinished":
        return Run(name, "unfinished", UNFINISHED, overrides=overrides)
    if metrics["status"] != "done":
        return Run(name, "failed", str(metrics["error"]["message"]), overrides=overrides)
    figures, reasons, missed = {}, {}, set()
    for figure in FIGURES:
        value: Any = metrics
        for key in figure.place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            reasons[figure.place] = str(value["reason"])
            if value.get("holds") is False:
                missed.add(figure.place)
            value = value["value"]
        # An integer may be too large for a float, and Python's JSON reader accepts NaN.
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value)):
            figures[figure.place] = float(value)
    video = metrics["video"] and Path(metrics["video"]).name
    existing_video = video if video and (folder / video).is_file() else None
    return Run(name, "done", "", existing_video, overrides, figures, reasons, frozenset(missed))


def _escaped(value: Any) -> Any:
    """Return a value from JSON with all its texts escaped by `plain`. Raises RecursionError for deep nesting."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): _escaped(part) for key, part in value.items()}
    return [_escaped(part) for part in value] if isinstance(value, list) else value


def _natural(path: Path) -> list[Any]:
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)|/", str(path)) if part
    ]
