"""When the first seconds of a video are out while it is made, and what a second of video costs, as JSON."""

from __future__ import annotations

import tempfile
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine import EngineService, Progress, Request, Speaker
from engine.errors import RequestError

#: Settings that are compared if none are given.
SETTINGS = ("model=tiny", "model=tiny sampler=turbo", "model=tiny-flashtalk")
#: Most seconds from the end of the first window's computation to its published part.
ALLOWED = 1.0


def run(settings: tuple[str, ...] = (), frames: int = 0, rounds: int = 3) -> dict[str, Any]:
    """Publish a video while it is made, `rounds` times with each of `settings`, and return the best times.

    Settings are overrides with spaces between them. `frames` is the length of the video; 0: as long as its voice, 69
    frames. Weights are loaded and one video is made before anything is timed. Seconds count from the call of `generate`
    with loaded weights:

    - `first_part`: the first part is in its folder, and a player can show `first_part_video` seconds;
    - `first_window`: the first window is computed; `behind` is the time from then to its part, at most ALLOWED;
    - `whole`: the finished video is delivered.

    Raises RequestError, and EngineError if a video cannot be made.
    """
    if rounds < 1:
        raise RequestError(f"{rounds} rounds", field="bench live", hint="give 1 or more")
    rows = []
    with tempfile.TemporaryDirectory(prefix="live-") as folder:
        for number, words in enumerate(settings or SETTINGS):
            rows.append({"settings": words, **_measure(words.split(), frames, rounds, Path(folder) / str(number))})
    return {
        "bench": "live",
        "rounds": rounds,
        "rows": rows,
        "allowed": ALLOWED,
        "holds": all(row["behind"] <= ALLOWED for row in rows),
    }


def _measure(words: list[str], frames: int, rounds: int, folder: Path) -> dict[str, Any]:
    folder.mkdir()
    examples = files("engine") / "examples"
    request = Request(
        "a woman speaks",
        str(examples / "one.png"),
        (Speaker(str(examples / "one.flac")),),
        frames=frames or None,
        live=True,
    )
    service = EngineService([*words, f"sink.folder={folder}", f"live.folder={folder / 'live'}"])
    try:
        service.load()
        tried = [_film(service, request) for _ in range(rounds + 1)][1:]
    finally:
        service.close()
    return min(tried, key=lambda row: float(row["first_part"]))


def _film(service: EngineService, request: Request) -> dict[str, Any]:
    first: dict[str, float] = {}
    began = time.monotonic()

    def listen(progress: Progress) -> None:
        now = time.monotonic() - began
        if progress.stage == "write" and progress.window == 1:
            first.setdefault("window", now)
        if progress.live is not None and progress.live.parts:
            first.setdefault("part", now)
            first.setdefault("video", progress.live.parts[0].seconds)

    delivery = service.generate(request, progress=listen)
    whole = time.monotonic() - began
    return {
        "first_part": round(first["part"], 3),
        "first_part_video": first["video"],
        "first_window": round(first["window"], 3),
        "behind": round(first["part"] - first["window"], 3),
        "whole": round(whole, 3),
        "video": delivery.seconds,
        "windows": len(delivery.plan.windows),
        "forwards_a_window": delivery.plan.forwards // len(delivery.plan.windows),
        "forwards_a_second": round(delivery.plan.forwards / delivery.seconds, 2),
    }
