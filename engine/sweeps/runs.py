"""A folder of a sweep -> its runs: what each was made with, and its figures."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import RequestError, plain

#: What a run leaves in its folder.
CONFIG = "config.yaml"
METRICS = "metrics.json"
FORMAT = 1
#: A run leaves a few kB.
_MOST_BYTES = 4 * 2**20
UNFINISHED = "it is still at work, or was ended before it could say why"


@dataclass(frozen=True)
class Figure:
    """One column of figures."""

    #: Keys in metrics.json, with dots between.
    place: str
    title: str
    about: str
    #: Which value is best: "least", "most", "nought" (the nearest to it), or "": none is.
    better: str
    digits: int = 2
    scale: float = 1.0
    #: Where it must lie, of drawn people (docs/long.md); "": nobody says. A run says itself whether it does.
    bar: str = ""


FIGURES = (
    Figure("timings.total_without_load", "Work, s", "seconds, but for those of loading weights", "least"),
    Figure("timings.denoise", "Denoising, s", "seconds within the network", "least"),
    Figure("timings.load", "Loading, s", "about nought where the run before had the same weights", ""),
    Figure("forwards", "Forwards", "of the network, before any step cache", "least", 0),
    Figure("measures.seam_ratio", "Seams", "change where windows meet, in parts of the usual one", "least"),
    Figure("measures.lab_drift", "Colour drift", "from the first second to the last, in CIE Lab", "least"),
    Figure(
        *(
            "measures.sharpness_kept",
            "Sharpness kept",
            "fine lines of the worst window in parts of the first's",
            "most",
        ),
        bar=">= 0.9",
    ),
    Figure(
        *("measures.sharpness", "Sharpness", "fine lines of the worst window in parts of the picture's", "most"),
        bar=">= 0.6",
    ),
    Figure(
        *("measures.identity", "Face", "distance of the worst window's face from the picture's: 1 is another", "least"),
        bar="<= 0.45",
    ),
    Figure(
        *("measures.identity_grown", "Face, growth", "of that distance from the first window on", "least"),
        bar="<= 0.25",
    ),
    Figure(
        *(
            "measures.structure_lost",
            "Structure lost",
            "likeness to the picture (SSIM) since the first window",
            "least",
        ),
        bar="<= 0.1",
    ),
    Figure(
        *("measures.colour_drift", "Colours by place", "of the worst window from the first one's, in CIE Lab", "least"),
        bar="<= 3",
    ),
    Figure("measures.lip_sync", "Lip sync", "correlation of mouths with their voices, 1 at most", "most"),
    Figure("measures.lip_lag", "Lip lag", "frames by which mouths are late", "nought", 0),
    Figure("bytes", "File, kB", "size of the video", "", 0, 1e-3),
)


@dataclass(frozen=True)
class Run:
    """One run: `figures` by their place, and for those that are not there, `reasons`."""

    #: Folder, from that of the sweep on, with slashes.
    name: str
    #: "done", "failed" or "unfinished".
    status: str
    error: str = ""
    #: File in the folder.
    video: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    #: Those that are not where they must be.
    missed: frozenset[str] = frozenset()


def read_runs(folder: Path) -> list[Run]:
    """Return the runs below `folder`, in the order of their numbers. Raises RequestError where there are none."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder", field="DIR", hint="give the folder of a sweep")
    found = {path.parent for path in folder.rglob(METRICS)}
    if not found:
        raise RequestError(f"{folder} has no runs in it", field="DIR", hint="make some: multitalk generate ... -m ...")
    return [_read(path, path.relative_to(folder).as_posix()) for path in sorted(found, key=_natural)]


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the overrides that are not the same in all `runs`, in the order in which they were given."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({json.dumps(run.overrides.get(key)) for run in runs if run.overrides}) > 1]


def best(runs: Sequence[Run], figure: Figure) -> set[str]:
    """Return the names of the runs that are best in `figure`: none where it has no best, or all are alike."""
    values = {run.name: run.figures[figure.place] for run in runs if figure.place in run.figures}
    if not figure.better or len(set(values.values())) < 2:
        return set()
    ranks = {"least": lambda value: value, "most": lambda value: -value, "nought": abs}
    ranked = {name: ranks[figure.better](value) for name, value in values.items()}
    return {name for name, rank in ranked.items() if rank == min(ranked.values())}


def _read(folder: Path, name: str) -> Run:
    try:
        path = folder / METRICS
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has over {_MOST_BYTES} bytes")
        raw = json.loads(path.read_text("utf-8"))
        told = _mended(raw)
        if told["format"] != FORMAT:
            raise ValueError(f"format {str(told['format'])[:40]}")
        # A file's name is looked for as it is.
        return _run({**told, "video": raw.get("video")}, folder, name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        return Run(name, "failed", plain(f"its metrics.json cannot be read ({type(error).__name__}: {error})"))


def _run(told: Mapping[str, Any], folder: Path, name: str) -> Run:
    overrides = dict(told["overrides"])
    if told["status"] == "unfinished":
        return Run(name, "unfinished", UNFINISHED, overrides=overrides)
    if told["status"] != "done":
        return Run(name, "failed", str(told["error"]["message"]), overrides=overrides)
    figures, reasons, missed = {}, {}, set()
    for figure in FIGURES:
        value: Any = told
        for key in figure.place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            reasons[figure.place] = str(value["reason"])
            if value.get("holds") is False:
                missed.add(figure.place)
            value = value["value"]
        # A whole number may be too large for a fraction, and JSON as Python reads it has NaN.
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value)):
            figures[figure.place] = float(value)
    video = told["video"] and Path(told["video"]).name
    there = video if video and (folder / video).is_file() else None
    return Run(name, "done", "", there, overrides, figures, reasons, frozenset(missed))


def _mended(value: Any) -> Any:
    """Return a value read from JSON with its texts as a page can hold them. Raises RecursionError where it is deep."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): _mended(part) for key, part in value.items()}
    return [_mended(part) for part in value] if isinstance(value, list) else value


def _natural(path: Path) -> list[Any]:
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)|/", str(path)) if part
    ]
