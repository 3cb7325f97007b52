"""What a worker's job costs beside the stages that make its video, as JSON."""

from __future__ import annotations

import asyncio
import base64
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any
from unittest.mock import patch

from engine import EngineService
from engine.data import Access
from engine.errors import EngineError
from engine.progress import Meter
from engine.recipe import versions
from engine.worker.handler import Handler, Terms
from engine.worker.keeper import Keeper

_MEDIA = {"reference_image": "one.png", "audio_1": "one.flac"}


def run(jobs: int = 10) -> dict[str, Any]:
    """Let a worker with the tiny model make `jobs` short videos in this process, each with settings of its own.

    All figures are milliseconds of CPU time of all threads, which others that keep the machine busy change little:
    `first` of the first job (its config is composed), `median` and `most` of the others, whose `overhead` is what no
    stage took, and `stages` the median of what they took together. `composing` is the part of the overhead that goes
    into the config. Raises EngineError for a job that fails.
    """
    service = EngineService(["model=tiny", "device=cpu", "sink=base64"], access=Access(schemes=("data",)))
    handler = Handler(Keeper(service), Terms())
    rows: list[dict[str, float]] = []
    try:
        handler.keeper.warm()
        handler.keeper.ready(handler.stopped)
        # Libraries that are imported by the first video of a process are no job's cost.
        _answer(handler, 0)
        service._composer._kept.clear()
        for number in range(max(2, jobs)):
            with _stages() as stages, _composing() as composing:
                began = time.process_time()
                _answer(handler, number)
                whole = time.process_time() - began
            rows.append({"overhead": whole - sum(stages), "stages": sum(stages), "composing": sum(composing)})
    finally:
        handler.keeper.close()
    first, later = rows[0], rows[1:]
    return {
        "jobs": len(rows),
        "first": {name: _milliseconds(value) for name, value in first.items()},
        "median": {name: _milliseconds(statistics.median(row[name] for row in later)) for name in first},
        "most": {name: _milliseconds(max(row[name] for row in later)) for name in first},
        "versions": versions(),
    }


def _answer(handler: Handler, number: int) -> dict[str, Any]:
    media = {
        name: "data:application/octet-stream;base64,"
        + base64.b64encode(files("engine.examples").joinpath(file).read_bytes()).decode()
        for name, file in _MEDIA.items()
    }
    asked = {
        **media,
        "prompt": "a person talks",
        "num_frames": 5,
        "fps": 25,
        "seed": number,
        "sampling_steps": 2,
        "guidance_scale": 1 + number / 100,
        "overrides": [f"sampler.shift={2 + number / 10}"],
    }
    told = asyncio.run(handler.handle({"id": f"overhead-{number}", "input": asked}))
    if "error" in told:
        raise EngineError(told["error"], code=told["error_code"])
    return told


@contextmanager
def _stages() -> Iterator[list[float]]:
    """Collect the CPU time of each stage."""
    found: list[float] = []
    stage = Meter.stage

    @contextmanager
    def timed(self: Meter, name: str, *, window: int = 0) -> Iterator[None]:
        with stage(self, name, window=window):
            began = time.process_time()
            try:
                yield
            finally:
                found.append(time.process_time() - began)

    with patch.object(Meter, "stage", timed):
        yield found


@contextmanager
def _composing() -> Iterator[list[float]]:
    """Collect the CPU time of composing."""
    found: list[float] = []
    config = EngineService._config

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return config(*arguments, **named)
        finally:
            found.append(time.process_time() - began)

    with patch.object(EngineService, "_config", timed):
        yield found


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
