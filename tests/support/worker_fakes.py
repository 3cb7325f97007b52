"""What the worker's tests share: a service that does what a test says, and a worker around it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.components import CancelToken, ProgressCallback
from engine.data import Canvas, Delivery, Plan, Progress, Request, Resumed
from engine.errors import Cancelled
from engine.serving.worker.handler import Handler, Terms
from engine.serving.worker.warm_engine import WarmEngine

GOOD: dict[str, Any] = {
    "reference_image": "https://example.com/anna.png",
    "audio_1": "https://example.com/anna.wav",
    "prompt": "a woman speaks",
}
STORE = {"accessId": "job-key-id", "accessSecret": "job/secret+key", "bucketName": "films"}

PLAN = Plan(
    model="tiny",
    resolution="small",
    untrained=False,
    canvas=Canvas((8, 8), (8, 8), (8, 8), (0, 0), "crop"),
    seats=(),
    frames=9,
    fps=25.0,
    seconds=0.36,
    timing="direct",
    audio_type="para",
    generated_frames=9,
    generated_fps=25.0,
    windows=(),
    sampler="euler (turbo)",
    steps=5,
    guidance="cfg",
    passes=1,
    forwards=5,
    seed=42,
    weights=Path("/secret/volume/tiny"),
    warnings=("the audio in /secret/volume/a.wav is cut",),
)
VIDEO = base64.b64encode(b"\0\0\0\x20ftypisom").decode("ascii")

#: What a generation does, before it is done.
Work = Callable[["FakeService", Request, ProgressCallback | None, CancelToken | None], None]


class OutOfMemoryError(RuntimeError):
    """As PyTorch's own, told by class name and module."""


OutOfMemoryError.__module__ = "torch"


class FakeService:
    """Answers with one delivery, after it has done the test's `work`; remembers what it was asked."""

    def __init__(self, work: Work | None = None, *, memory: str = "none", sink: str = "base64") -> None:
        self.work = work
        self.overrides: tuple[str, ...] = ()
        self.memory = memory
        self.sink = sink
        self.requests: list[Request] = []
        self.opened: list[tuple[tuple[str, ...], bool]] = []
        self.closed = 0
        self.loads = 0
        self.gate: threading.Event | None = None
        self.failure: BaseException | None = None
        self.resumed: Resumed | None = None
        self.report: dict[str, Any] = {"failed": {}, "hints": {}}
        self.content: str | None = VIDEO
        self.address: str | None = None

    def generate(
        self, request: Request, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> Delivery:
        self.requests.append(request)
        if self.work is not None:
            self.work(self, request, progress, cancel)
        content = base64.b64decode(self.content or "")
        kept = (self.address, self.content, hashlib.sha256(content).hexdigest(), len(content), ("cut",))
        return Delivery(
            *kept,
            media_type="video/mp4",
            seconds=PLAN.seconds,
            frames=PLAN.frames,
            fps=PLAN.fps,
            seed=PLAN.seed,
            timings={"denoise": 2.5},
            plan=PLAN,
        )

    def load(self) -> Mapping[str, float]:
        self.loads += 1
        if self.gate is not None:
            self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        return {"imports": 1.5, "weights": 2.5}

    def resume(self, request: Request, *, cancel: CancelToken | None = None) -> Resumed | None:
        return self.resumed

    def plan(self, request: Request, *, cancel: CancelToken | None = None) -> Plan:
        self.requests.append(request)
        return PLAN

    def preview(self, request: Request, path: Path) -> Plan:
        raise AssertionError

    def capabilities(self) -> Mapping[str, Any]:
        return {
            "model": "tiny",
            "memory": self.memory,
            "sink": self.sink,
            "device": "cpu",
            "versions": {"torch": "2.9"},
        }

    def check(self) -> Mapping[str, Any]:
        return self.report

    def open(self, overrides: Sequence[str], *, alone: bool = False) -> FakeService:
        self.opened.append((tuple(overrides), alone))
        chosen = dict(override.split("=", 1) for override in overrides)
        other = FakeService(self.work, memory=chosen.get("memory", self.memory), sink=chosen.get("sink", self.sink))
        # One book for all of them.
        other.requests, other.opened = self.requests, self.opened
        return other

    def close(self) -> None:
        self.closed += 1


class Sent:
    """Keeps the progress that a job sent, in order."""

    def __init__(self) -> None:
        self.payloads: list[Mapping[str, Any]] = []

    def __call__(self, job: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], None]:
        return self.payloads.append


def until_cancelled(
    service: FakeService, request: Request, progress: ProgressCallback | None, cancel: CancelToken | None
) -> None:
    """Work for ever, as a long generation does; look at the token as often."""
    assert cancel is not None
    while not cancel.is_set():
        threading.Event().wait(0.01)
    raise Cancelled("denoise")


def steps(
    service: FakeService, request: Request, progress: ProgressCallback | None, cancel: CancelToken | None
) -> None:
    """Report ten steps in no time."""
    for step in range(1, 11):
        if progress is not None:
            progress(Progress("denoise", 1, 1, step, 10, fraction=step / 10, remaining=10.0 - step))


def worker(service: FakeService, terms: Terms | None = None, sent: Sent | None = None) -> Handler:
    """Return a handler around the service, not warmed up."""
    return Handler(WarmEngine(service), terms or Terms(), poster=sent)


def ask(handler: Handler, given: Mapping[str, Any] | None = None, **job: Any) -> dict[str, Any]:
    """Give the handler one job and return its answer."""
    return ask_whole(handler, {"id": "job-1", "input": GOOD if given is None else given, **job})


def ask_whole(handler: Handler, job: Mapping[str, Any]) -> dict[str, Any]:
    """Give the handler a job as the platform would and return its answer."""
    return asyncio.run(handler.handle(job))
