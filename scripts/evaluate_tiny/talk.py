"""Does the embedded model talk? Mouths, colours, seams and seconds of videos of held-out people, as JSON."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from engine.assembly.location import locate_weights
from engine.assembly.provenance import versions, weights_hash
from engine.errors import RequestError
from engine.evaluation.bars import check_bars
from engine.plugin.manager import installed
from scripts.evaluate_tiny.bars import BARS, LONG_BARS
from scripts.evaluate_tiny.cases import recordings
from scripts.evaluate_tiny.kinds import KINDS, LONG_KINDS
from scripts.evaluate_tiny.studio import opened

#: What must be the same in a run that resumes another one.
SAME = ("seed", "sizes", "overrides", "long_voice", "weights", "versions", "threads")
#: The model's small bucket: landscape, square, portrait.
SIZES = "160x96,128x128,96x160"


def run(
    *,
    clips: int = 40,
    kinds: str = ",".join(KINDS),
    seed: int = 5_000_000,
    long: int = 6,
    sizes: str = SIZES,
    voices: str = "",
    details: str = "",
    long_voice: int = 0,
    keep: str = "",
    resume: bool = False,
    minutes: float = 0.0,
    override: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Generate videos of held-out people and return the JSON output: settings, figures by kind, and bars.

    `clips` of each of `kinds` (of `long`: `long` clips), drawn from `seed` on in `sizes` by turns; all is measured from
    the MP4 files that the engine writes. `voices` is a folder of recordings for the kind `real`, `details` a file for
    the figures of every clip, `override` goes to the engine (Hydra's grammar). `long_voice` seconds run the kinds
    `long_one` and `long_two` instead of the usual ones, whose videos stay in the folder `keep` if there is one. With
    `resume` long clips whose figures are in `details` are not generated again; after `minutes` (0: no limit) no further
    one begins. Needs a checkout, whose scripts/train_tiny draws the clips, and eSpeak NG. Raises EngineError.
    """
    usual = ",".join(KINDS)
    selected = _selected(",".join(LONG_KINDS) if long_voice and kinds == usual else kinds)
    if long_voice < 0 or (not long_voice and set(selected) & set(LONG_KINDS)):
        raise RequestError(f"{long_voice} s", field="--long-voice", hint="give the seconds of the voice, such as 60")
    for name, count in (("--clips", clips), ("--long", long)):
        if count < 1:
            raise RequestError(f"{count} clips", field=name, hint="give 1 or more")
    if seed < 0:
        raise RequestError(f"{seed} is not a seed", field="--seed", hint="give 0 or more")
    if details and not Path(details).absolute().parent.is_dir():
        raise RequestError(f"no folder for {details}", field="--details", hint="create it first")
    if resume and not details:
        raise RequestError("nothing to resume", field="--resume", hint="give the file of figures: --details FILE")
    if voices:
        recordings(Path(voices))
    overrides = override if any(word.startswith("model=") for word in override) else ("model=tiny", *override)
    with opened(
        overrides,
        clips=clips,
        long=long,
        seed=seed,
        sizes=read_sizes(sizes),
        voices=Path(voices) if voices else None,
        long_voice=long_voice,
        keep=Path(keep) if keep else None,
        details_file=Path(details) if details else None,
        budget=60 * minutes or None,
    ) as studio:
        settings = {
            "seed": seed,
            "clips": clips,
            "long": long,
            "sizes": sizes,
            "kinds": list(selected),
            "overrides": list(overrides),
            **({"long_voice": long_voice} if long_voice else {}),
            **machine(locate_weights(studio.service.config, installed())),
        }
        report: dict[str, Any] = {"bench": "talk", "settings": settings}
        if details:
            studio.take_up({name: settings[name] for name in SAME if name in settings}, resume=resume)
        for kind in selected:
            began = perf_counter()
            figures = (KINDS | LONG_KINDS)[kind](studio)
            report[kind] = figures and figures | {"seconds": round(perf_counter() - began, 1)}
            studio.keep_details()
    return report | {"bars": check_bars(report, (*BARS, *LONG_BARS))}


def machine(weights: Path) -> dict[str, Any]:
    """Return a report's data about the weights in a folder, and about the software and machine."""
    return {
        "weights": weights_hash(weights),
        "versions": versions(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def _selected(kinds: str) -> tuple[str, ...]:
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    kinds_known = (*KINDS, *LONG_KINDS)
    for name in names:
        if name not in kinds_known:
            raise RequestError(
                f"no kind named {name!r}", field="--kinds", hint=f"choose among {', '.join(kinds_known)}"
            )
    if not names:
        raise RequestError("no kind is given", field="--kinds", hint=f"choose among {', '.join(kinds_known)}")
    return tuple(name for name in kinds_known if name in names)


def read_sizes(text: str) -> Sequence[tuple[int, int]]:
    """Return the sizes (width, height) in a text such as SIZES. Raises RequestError."""
    sizes = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d+)x(\d+)\s*", word)
        if match is None or min(int(match[1]), int(match[2])) < 64:
            raise RequestError(f"{word!r} is not a size", field="--sizes", hint=f"such as {SIZES}, width x height")
        sizes.append((int(match[1]), int(match[2])))
    return sizes
