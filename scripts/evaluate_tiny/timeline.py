"""Cuts in pauses against fixed cuts, and whether a mood changes where its prompt does; as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from engine.assembly.location import locate_weights
from engine.data import Cue, Plan, Request, Speaker
from engine.errors import EngineError, RequestError
from engine.evaluation.frames import read_video
from engine.evaluation.metrics import Floats, Pictures, mean, seam_ratio, window_sync
from engine.evaluation.mouths import correlation, mouth_openings
from engine.plugin.manager import installed
from scripts.evaluate_tiny.cases import FPS, Case
from scripts.evaluate_tiny.films import generate_video, regions
from scripts.evaluate_tiny.studio import Studio, opened
from scripts.evaluate_tiny.talk import SIZES, machine, read_sizes
from scripts.page_tables import replaced

#: Seconds on each side of a cut in which mouths are compared with the voice there.
_NEAR = 0.5
#: Frames on each side of a cut whose changes are what is usual there.
_AROUND = 4
#: The page, and the report from which `python -m scripts.evaluate_tiny timeline-table` makes its tables.
PAGE, MEASURED = Path("docs/timeline.md"), Path("docs/measured/timeline.json")
#: Figure of the report -> its row in the page, and the digits after its point.
_ROWS = {
    "windows": ("windows", 2),
    "frames": ("computed frames", 1),
    "cuts": ("cuts", 2),
    "cuts in pauses": ("cuts in pauses", 2),
    "voice's opening at cuts": ("how far the voice opens a mouth at cuts, 0 to 1", 3),
    "sync": ("lip sync of the whole video", 3),
    "sync of the worst window": ("lip sync of the worst window", 3),
    "mouth's error near cuts": ("difference of mouth and voice within 0.5 s of cuts", 3),
    "seam": ("change at cuts against the median change", 2),
    "jump": ("change at cuts against the changes around it", 2),
}
SAD, HAPPY = "A person talks, sad and gloomy.", "A person talks, happy and smiling."


def run(
    *, clips: int = 6, seconds: float = 10.0, seed: int = 5_000_000, override: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Generate videos of one person each with windows=fixed and windows=pauses, and with a mood that changes.

    `clips` videos of `seconds`, drawn as by `evaluate_tiny talk` from `seed` on, with the turbo sampler; `override`
    goes to the engine (Hydra's grammar). All is measured from the MP4 files. Needs a checkout and eSpeak NG. Raises
    EngineError.
    """
    if clips < 1 or seconds < 4:
        what = f"{clips} clips of {seconds:g} s"
        raise RequestError(what, field="evaluate_tiny timeline", hint="1 clip or more, of 4 s or more: two windows")
    overrides = ("model=tiny", "device=cpu", "sampler=turbo", *override)
    with opened(
        overrides, clips=clips, long=1, seed=seed, sizes=read_sizes(SIZES), name="evaluate_tiny timeline"
    ) as studio:
        cases = studio.cases("long", clips, people=1, frames=round(seconds * FPS), drawn=1)
        rows = [_cut(studio, case) for case in studio.each("windows", cases, line=1)]
        moods = [_mood(studio, case) for case in studio.each("moods", cases, line=1)]
        return {
            "bench": "timeline",
            "settings": {
                "seed": seed,
                "clips": clips,
                "seconds": seconds,
                "overrides": list(overrides),
                **machine(locate_weights(studio.service.config, installed())),
            },
            "windows": {
                way: {key: mean(row[way][key] for row in rows) for key in rows[0][way]} for way in ("fixed", "pauses")
            },
            "mood": {key: mean(row[key] for row in moods) for key in moods[0]},
            "clips": [
                {"seed": case.seed, **row, "mood": mood} for case, row, mood in zip(cases, rows, moods, strict=True)
            ],
        }


def _cut(studio: Studio, case: Case) -> dict[str, dict[str, float | None]]:
    videos = {way: generate_video(studio.service, case, overrides=(f"windows={way}",)) for way in ("fixed", "pauses")}
    seams = videos["pauses"].plan.seams
    assert seams is not None
    quiet = {"fixed": seams.fixed_pauses, "pauses": sum(seam.pause for seam in seams.seams)}
    found: dict[str, dict[str, float | None]] = {}
    for way, video in videos.items():
        plan, pictures = video.plan, video.frames
        boxes, driving = regions(pictures, case), case.driving(len(pictures))
        cuts = [window.start + window.motion for window in plan.windows[1:]]
        openings = mouth_openings(pictures, boxes)[0]
        sync = [value for window in window_sync(pictures, boxes, driving, plan.windows) for value in window]
        found[way] = {
            "windows": float(len(plan.windows)),
            "frames": float(sum(window.frames for window in plan.windows)),
            "seconds": video.seconds,
            "sync": correlation(openings[1:], driving[0][1:]),
            "sync of the worst window": min(sync, default=None),
            "mouth's error near cuts": _error(openings, driving[0], cuts),
            "voice's opening at cuts": float(np.mean([driving[0][cut - 1 : cut + 1].max() for cut in cuts])),
            "seam": seam_ratio(pictures, plan.windows),
            "jump": _jump(pictures, cuts),
            "cuts": float(len(cuts)),
            "cuts in pauses": float(quiet[way]),
        }
    return found


def _error(openings: Floats, driving: Floats, cuts: Sequence[int]) -> float:
    """Return the mean difference between a mouth and its voice near cuts, both in their own standard deviations."""
    reach = round(_NEAR * FPS)
    mouth, voice = ((curve - curve[1:].mean()) / max(float(curve[1:].std()), 1e-6) for curve in (openings, driving))
    near = np.unique(np.concatenate([np.arange(max(1, cut - reach), min(len(mouth), cut + reach)) for cut in cuts]))
    return float(np.abs(mouth[near] - voice[near]).mean())


def _jump(pictures: Pictures, cuts: Sequence[int]) -> float:
    """Return the change from the last frame before a cut to the first after it, relative to the changes around it."""
    changes = np.array([np.abs(after.astype(np.int16) - before).mean() for before, after in pairwise(pictures)])
    ratios = []
    for cut in cuts:
        around = np.concatenate([changes[max(0, cut - 1 - _AROUND) : cut - 1], changes[cut : cut + _AROUND]])
        ratios.append(changes[cut - 1] / max(float(around.mean()), 1e-6))
    return float(np.mean(ratios))


def _mood(studio: Studio, case: Case) -> dict[str, float]:
    """Return how far a video that becomes happy with its second window is from a sad one towards a happy one.

    0 is as the sad one, 1 as the happy one: the share of the way, before the change and in each window after it.
    """
    base = Request(SAD, str(case.image), (Speaker(str(case.voices[0])),), seed=case.seed, frames=case.frames)
    sad, plan = _video(studio, base)
    begin = plan.windows[1].start + plan.windows[1].motion
    happy, _ = _video(studio, replace(base, prompt=HAPPY))
    changed, _ = _video(studio, replace(base, prompt="", prompts=(Cue(SAD, frame=0), Cue(HAPPY, frame=begin))))
    found = {"differing values before": float((changed[:begin] != sad[:begin]).mean())}
    for window in plan.windows[1:]:
        part = slice(window.start + window.motion, window.start + window.motion + window.keep)
        way = (happy[part].astype(np.float64) - sad[part]).ravel()
        found[f"window {window.index + 1}"] = float(
            (changed[part].astype(np.float64) - sad[part]).ravel() @ way / (way @ way)
        )
    return found


def _video(studio: Studio, request: Request) -> tuple[Pictures, Plan]:
    delivery = studio.service.generate(request)
    if delivery.address is None:
        raise EngineError("the sink keeps no file", field="sink", hint="leave it at sink=disk")
    path = Path(delivery.address)
    pictures = read_video(path)
    path.unlink()
    return pictures, delivery.plan


def table(report: Mapping[str, Any]) -> str:
    """Return both tables of the page."""
    ways = report["windows"]
    lines = ["| mean of the videos | `windows=fixed` | `windows=pauses` |", "|---|---|---|"]
    for key, (name, digits) in _ROWS.items():
        lines.append(f"| {name} | {ways['fixed'][key]:.{digits}f} | {ways['pauses'][key]:.{digits}f} |")
    lines += ["", "| part of the video | share of the way from sad to happy |", "|---|---|"]
    for key, value in report["mood"].items():
        if key.startswith("window"):
            lines.append(f"| {key} | {value:.2f} |")
    return "\n".join(lines)


def write_table(root: Path = Path()) -> None:
    """Write the tables of the measured report into the page."""
    page = root / PAGE
    text = table(json.loads((root / MEASURED).read_text("utf-8")))
    page.write_text(replaced(page.read_text("utf-8"), {"timeline": text}), "utf-8")
