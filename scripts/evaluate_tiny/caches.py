"""Step caches and guidance intervals: forwards against sync and sharpness, and the magnitudes that MagCache needs."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

import engine
from engine import EngineService
from engine.assembly.location import locate_weights
from engine.components import CacheCost
from engine.config import CacheConfig
from engine.data import Request, Speaker
from engine.errors import RequestError
from engine.evaluation.likeness import drift_of
from engine.evaluation.metrics import mean
from engine.network.step_caches import ResidualCache
from engine.plugin.manager import installed
from scripts.evaluate_tiny.cases import FPS
from scripts.evaluate_tiny.films import generate_video, mouth_rows
from scripts.evaluate_tiny.long_voices import case_looks
from scripts.evaluate_tiny.studio import Studio, opened
from scripts.evaluate_tiny.talk import SIZES, machine, read_sizes
from scripts.page_tables import replaced

if TYPE_CHECKING:
    from torch import Tensor

#: What every row is compared with: the 14B model's steps and passes.
FULL = ("sampler.steps=40", "guidance.text_scale=2.0")
#: Name of a row -> what it overrides in addition.
SETTINGS: dict[str, tuple[str, ...]] = {
    "none": (),
    "guidance.until=0.5": ("guidance.until=0.5",),
    "teacache": ("cache=teacache", "cache.threshold=0.3"),
    "firstblock": ("cache=firstblock", "cache.threshold=0.1"),
    "taylorseer": ("cache=taylorseer", "cache.interval=4", "cache.warmup=4"),
    "magcache": ("cache=magcache",),
    "easycache": ("cache=easycache", "cache.threshold=0.2"),
    "magcache, until 0.5": ("cache=magcache", "guidance.until=0.5"),
    "easycache, until 0.5": ("cache=easycache", "cache.threshold=0.2", "guidance.until=0.5"),
}
#: The page, and the report from which `python -m scripts.evaluate_tiny caches-table` makes its table.
PAGE, MEASURED = Path("docs/caches.md"), Path("docs/measured/caches.json")
#: Most that sync may be lower, and the least ratio of forwards.
LOST, FEWER = 0.02, 3.0
_EXAMPLES = Path(engine.__file__).parent / "examples"


def run(
    *,
    clips: int = 3,
    rows: str = ";".join(SETTINGS),
    seed: int = 5_000_000,
    override: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Generate the same videos with 40 steps and 3 passes, and with caches and guidance intervals; compare them.

    `clips` of one person and as many of two, drawn as by `evaluate_tiny talk` from `seed` on; `rows` are names of
    SETTINGS, separated by semicolons, or overrides of your own such as `cache=magcache cache.threshold=0.1`. The first
    row is what the others are compared with. `override` goes to the engine (Hydra's grammar). Needs a checkout and
    eSpeak NG. Raises EngineError.
    """
    names = [name.strip() for name in rows.split(";") if name.strip()]
    if clips < 1 or not names:
        hint = f"1 clip or more, and rows such as {'; '.join(SETTINGS)}"
        raise RequestError(f"{clips} clips, {len(names)} rows", field="evaluate_tiny caches", hint=hint)
    overrides = ("model=tiny", "device=cpu", *FULL, *override)
    with opened(
        overrides, clips=clips, long=1, seed=seed, sizes=read_sizes(SIZES), name="evaluate_tiny caches"
    ) as studio:
        report: dict[str, Any] = {
            "bench": "caches",
            "settings": {
                "seed": seed,
                "clips": clips,
                "overrides": list(overrides),
                **machine(locate_weights(studio.service.config, installed())),
            },
            "rows": {name: _film(studio, name, SETTINGS.get(name, tuple(name.split()))) for name in names},
        }
    full = report["rows"][names[0]]
    for row in report["rows"].values():
        row["fewer"] = round(full["forwards"] / row["forwards"], 2)
        row["lost"] = {people: round(full[people] - row[people], 4) for people in ("one", "two")}
    report["enough"] = [
        name for name, row in report["rows"].items() if row["fewer"] >= FEWER and max(row["lost"].values()) <= LOST
    ]
    return report


def _film(studio: Studio, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the forwards of a window, sync of one and of two people, sharpness, and CPU seconds of a clip."""
    studio.say(name)
    forwards, sharp = 0, list[float]()
    sync: dict[str, list[float]] = defaultdict(list)
    began = process_time()
    for people, cases in (("one", studio.one_cases), ("two", studio.two_cases)):
        for case in cases:
            video = generate_video(studio.service, case, overrides=overrides)
            forwards += video.forwards or 0
            sync[people] += [row.own or 0.0 for row in mouth_rows(video.frames, case, fps=FPS)]
            sharp.append(drift_of(case_looks(video.frames, case, video.plan)).sharpness)
    count = len(studio.one_cases) + len(studio.two_cases)
    row = {
        "overrides": list(overrides),
        "forwards": round(forwards / count, 1),
        **{people: mean(values) for people, values in sync.items()},
        "sharpness": mean(sharp),
        "cpu_seconds": round((process_time() - began) / count, 1),
    }
    studio.say(json.dumps(row))
    return row


def table(report: Mapping[str, Any]) -> str:
    """Return a report as a table."""
    rows = [
        "| setting | overrides | forwards | fewer | sync, one person | sync, two people | sharpness |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in report["rows"].items():
        rows.append(
            f"| {name} | `{' '.join(row['overrides']) or '-'}` | {row['forwards']:g} | {row['fewer']:.2f} x "
            f"| {row['one']:.3f} ({0 - row['lost']['one']:+.3f}) | {row['two']:.3f} ({0 - row['lost']['two']:+.3f}) "
            f"| {row['sharpness']:.3f} |"
        )
    return "\n".join(rows)


def write_table(root: Path = Path()) -> None:
    """Write the table of the measured report into the page."""
    page = root / PAGE
    text = table(json.loads((root / MEASURED).read_text("utf-8")))
    page.write_text(replaced(page.read_text("utf-8"), {"caches": text}), "utf-8")


# --- what MagCache needs ----------------------------------------------------------------------------------------------


@dataclass
class WatchConfig(CacheConfig):
    """Computes everything and measures residuals."""

    name: str = "evaluate-magnitudes"


class Watch(ResidualCache):
    """Computes everything, and keeps by how much the norm of a branch's residual changes from time to time."""

    #: Of each sampling and branch: times, and mean ratios of the norm to that at the time before.
    curves: dict[tuple[int, str], list[tuple[float, float]]] = {}
    _runs = 0

    def __init__(self, config: WatchConfig) -> None:
        super().__init__()

    def reset(self) -> None:
        super().reset()
        Watch._runs += 1
        self._time = 1000.0
        self._norms: dict[str, Tensor] = {}

    def at(self, time: float) -> None:
        self._time = time

    def must_compute(self, signal: Tensor) -> bool:
        return True

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        return CacheCost(kept=(branches + 1) * tokens * channels * 4)

    def end(self, tokens: Tensor) -> None:
        super().end(tokens)
        norms = self._residuals[self._branches[0]].norm(dim=-1)
        before = self._norms.get(self._branches[0])
        ratio = 1.0 if before is None else float((norms / before.clamp(min=1e-12)).mean())
        self.curves.setdefault((self._runs, self._branches[0]), []).append((self._time, ratio))
        self._norms[self._branches[0]] = norms


def magnitudes(
    *,
    steps: str = "10,16,40",
    frames: int = 81,
    points: int = 21,
    image: str = str(_EXAMPLES / "one.png"),
    audio: str = str(_EXAMPLES / "one.flac"),
    prompt: str = "A person talks.",
    override: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Measure the magnitudes of the blocks' residual at `points` times, as model.resolutions.*.magcache has them.

    A video of `frames` frames of `image` and `audio` is generated with each number of `steps`, without a cache.
    `override` chooses model and resolution, such as `model=multitalk` and `resolution=720p`. Raises EngineError.
    """
    if points < 2:
        raise RequestError(f"{points} points", field="--points", hint="give 2 or more")
    registry = installed()
    if "evaluate-magnitudes" not in registry.caches.names():
        registry.caches(Watch, WatchConfig)
    Watch.curves.clear()
    service = EngineService([*override, "sink=base64"])
    for count in steps.split(","):
        words = (f"sampler.steps={int(count)}", "cache=evaluate-magnitudes")
        service.generate(
            Request(prompt=prompt, image=image, speakers=(Speaker(audio),), frames=frames, overrides=words)
        )
    config = service.config
    service.close()
    return {
        "model": config.model.name,
        "resolution": config.resolution,
        "magcache": [float(f"{value:.4g}") for value in mean_curve(list(Watch.curves.values()), points)],
    }


def mean_curve(curves: Sequence[Sequence[tuple[float, float]]], points: int) -> list[float]:
    """Return the geometric mean of curves at `points` times from 1000 down to 0, relative to the first.

    A curve consists of times (0 .. 1000, falling) with ratios to the value at the time before. It begins at 1 and is
    constant beyond its ends.
    """
    places = [1000 * (1 - index / (points - 1)) for index in range(points)]
    sums = [0.0] * points
    for curve in curves:
        logarithm, known = 0.0, []
        for time, ratio in curve:
            logarithm += math.log(ratio)
            known.append((time, logarithm))
        for index, place in enumerate(places):
            sums[index] += _interpolated(known, place)
    return [math.exp((value - sums[0]) / len(curves)) for value in sums]


def _interpolated(known: Sequence[tuple[float, float]], time: float) -> float:
    if time >= known[0][0]:
        return known[0][1]
    for (before, first), (after, second) in pairwise(known):
        if after <= time <= before:
            return first + (second - first) * (before - time) / (before - after)
    return known[-1][1]
