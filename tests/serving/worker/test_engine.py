"""The handler around the real engine and the tiny model: memory that runs out in the middle of a generation."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from worker_fakes import ask

from engine import EngineService, hookimpl
from engine.plugin.manager import installed
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine


class Greedy:
    """A plugin that finds the device full after the first step, as often as it is told."""

    def __init__(self) -> None:
        self.times = 0

    @hookimpl
    def step_finished(self) -> None:
        import torch

        if self.times > 0:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def greedy() -> Iterator[Greedy]:
    plugin = Greedy()
    installed().plugins.register(plugin)
    yield plugin
    installed().plugins.unregister(plugin)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    def inline(name: str) -> str:
        return base64.b64encode((files("engine") / "examples" / name).read_bytes()).decode("ascii")

    media = {"reference_image": inline("one.png"), "audio_1": inline("one.flac")}
    return {**media, "prompt": "a person talks", "num_frames": 5, "fps": 25, "sampling_steps": 2}


def test_memory_that_runs_out_costs_a_retry_then_the_worker(greedy: Greedy, job: dict[str, Any]) -> None:
    handler = Handler(WarmEngine(EngineService(["model=tiny", "sink=base64", "access.schemes=[data]"])), Terms())
    greedy.times = 1
    told = ask(handler, job)
    assert told["warnings"][-1].endswith("ran out with memory=none; the video was made with memory=model-offload")
    video = base64.b64decode(told["video_base64"])
    assert video[4:8] == b"ftyp"
    assert (told["sha256"], told["bytes"]) == (hashlib.sha256(video).hexdigest(), len(video))
    assert handler.warm_engine.memory == "model-offload"

    greedy.times = 2
    told = ask(handler, job)
    assert (told["error_code"], told["refresh_worker"]) == ("out_of_memory", True)
    assert "memory=group-offload" in told["error"]

    assert ask(handler, job)["video_base64"]
    handler.warm_engine.close()
