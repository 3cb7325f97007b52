"""The handler around the real engine and the tiny model: memory that runs out in the middle of a generation."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from graphs import fresh_counters
from worker_fakes import FakeService, ask

from engine import EngineService, hookimpl
from engine.errors import RequestError
from engine.plugin.manager import installed
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine
from engine.serving.worker.warm_up import warm_up


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


@pytest.mark.slow
def test_a_warm_up_makes_one_and_two_speakers_ready_and_its_seconds_are_told(
    job: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    counters = fresh_counters()
    # Such a worker cannot read paths, and a store that does not exist must not get the warm-up's videos.
    boot = ["model=tiny", "sink=s3", "sink.bucket=none", "access.schemes=[data]"]
    service = EngineService([*boot, "sampler.steps=2", "compile=blocks", "compile.backend=eager"])
    handler = Handler(WarmEngine(service, warm_up), Terms())
    caplog.set_level("INFO", logger="engine.serving")

    handler.warm_engine.warm()
    handler.warm_engine.wait_until_ready(threading.Event())
    warmed = counters["stats"]["unique_graphs"]
    told = ask(handler, {**job, "output": {"sink": "base64"}})
    handler.warm_engine.close()
    torch._dynamo.reset()

    assert handler.warm_engine.error is None
    assert told.get("error") is None
    assert told["cold_start"]["warm_up"] > 0
    assert sum("warm-up: 5 frames" in record.getMessage() for record in caplog.records) == 2
    # Speakers, and none: the job of one speaker finds its graph.
    assert (warmed, counters["stats"]["unique_graphs"]) == (2, 2)


def test_a_warm_up_that_fails_is_logged_and_the_worker_is_ready(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_service: Any) -> None:
        raise RequestError("no picture", field="request.image")

    engine = WarmEngine(FakeService(), fail)
    engine.warm()
    engine.wait_until_ready(threading.Event())

    assert engine.state == "ready"
    assert "the worker takes jobs without them: request.image: no picture" in caplog.text
