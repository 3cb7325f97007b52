"""The generate entrypoint in front of a service that makes no video: what it asks for and what it tells."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import Delivery, Plan, Progress, Request
from engine.components import CancelToken, ProgressCallback, Service
from engine.config import RequestConfig
from engine.data import (
    Canvas,
    Limit,
    Live,
    LivePart,
    Report,
    Resumed,
    Seat,
    Speaker,
    Window,
    WindowReport,
)
from engine.errors import Cancelled, RequestError, SinkError
from plugins.entrypoints.generate import Generate, GenerateConfig, describe, interruptible, lines, make_request, state

PLAN = Plan(
    model="tiny",
    resolution="small",
    untrained=True,
    canvas=Canvas((1024, 768), (171, 128), (128, 128), (21, 0), "crop"),
    seats=(
        Seat(0, (0, 0, 64, 128), "auto", silent=False, seconds=1.5, begins=0.25),
        Seat(1, (64, 0, 128, 128), "box", silent=True, seconds=0.0, begins=0.0),
    ),
    frames=100,
    fps=25.0,
    seconds=4.0,
    timing="direct",
    audio_type="para",
    generated_frames=100,
    generated_fps=25.0,
    windows=(Window(0, 0, 81, 0, 81), Window(1, 56, 45, 25, 19)),
    sampler="euler (standard)",
    steps=10,
    guidance="cfg",
    passes=2,
    forwards=40,
    seed=3,
    weights=Path("weights/tiny"),
    warnings=("the weights of 'tiny' are untrained: the video shows noise, not a talking person",),
)
ASKED = RequestConfig(image="a.png", audio=["a.wav", "silence"], prompt="two people")


class FakeService:
    """Answers with one plan and one delivery; reports two signs of life on the way."""

    overrides = ()

    def __init__(
        self, *, interrupt: bool = False, address: str | None = "films/talk.mp4", report: Report | None = None
    ) -> None:
        self.requests: list[Request] = []
        self.interrupt = interrupt
        self.address = address
        self.report = report

    def generate(
        self, request: Request, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> Delivery:
        self.requests.append(request)
        for step in (1, 10):
            if progress is not None:
                progress(Progress("denoise", 1, 2, step, 10, fraction=step / 20, remaining=61.0))
        if self.interrupt:
            assert cancel is not None
            os.kill(os.getpid(), signal.SIGINT)
            if cancel.is_set():
                raise Cancelled("denoise")
        content = None if self.address else "AAAA"
        return Delivery(
            *(self.address, content, "0" * 64, 7, PLAN.warnings),
            media_type="video/mp4",
            seconds=4.0,
            frames=100,
            fps=25.0,
            seed=3,
            timings={"denoise": 2.5},
            plan=PLAN,
            report=self.report,
        )

    def plan(self, request: Request, *, cancel: CancelToken | None = None) -> Plan:
        self.requests.append(request)
        return PLAN

    def preview(self, request: Request, path: Path) -> Plan:
        path.write_bytes(b"PNG")
        return PLAN

    def capabilities(self) -> Mapping[str, Any]:
        return {}

    def check(self) -> Mapping[str, Any]:
        return {}

    def load(self) -> Mapping[str, float]:
        return {}

    def resume(self, request: Request, *, cancel: CancelToken | None = None) -> Resumed | None:
        return None

    def open(self, overrides: Sequence[str], *, alone: bool = False) -> Service:
        return self

    def close(self) -> None:
        pass


def test_the_video_is_on_stdout_and_the_rest_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    service = FakeService()
    assert Generate(GenerateConfig(request=ASKED)).run(service) == 0
    told = capsys.readouterr()
    assert told.out == "films/talk.mp4\n"
    assert "denoise, window 1/2, step 10/10, 1:01 left" in told.err
    assert "multitalk: warning: the weights of 'tiny' are untrained" in told.err
    assert service.requests == [Request(prompt="two people", image="a.png", speakers=(Speaker("a.wav"), Speaker(None)))]


def test_a_recording_has_boxes_for_its_people() -> None:
    asked = RequestConfig(image="a.png", voices="call.wav", prompt="x", boxes="[[0.5, 0, 1, 1], [0, 0, 0.5, 1]]")
    assert make_request(asked).boxes == ((0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0))


@pytest.mark.parametrize(("text", "field"), [("[[0,", ""), ("{}", ""), ("[[0, 0, 1, true]]", "[0][3]"), ("[1]", "[0]")])
def test_boxes_that_are_none_are_refused_by_name(text: str, field: str) -> None:
    with pytest.raises(RequestError) as error:
        make_request(RequestConfig(image="a.png", voices="call.wav", prompt="x", boxes=text))
    assert error.value.field == f"request.boxes{field}"


def test_quiet_leaves_the_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    Generate(GenerateConfig(request=ASKED, quiet=True)).run(FakeService())
    assert capsys.readouterr().err.splitlines() == [f"multitalk: warning: {PLAN.warnings[0]}"]


class Publishing(FakeService):
    """Publishes the video while it is made."""

    def generate(
        self, request: Request, *, progress: ProgressCallback | None = None, cancel: CancelToken | None = None
    ) -> Delivery:
        assert progress is not None
        for parts in (1, 2):
            live = Live("films/talk.live/index.m3u8", (LivePart("part-00000.m4s", 0.0, 3.2),) * parts)
            progress(Progress("denoise", 2, 2, 1, 10, fraction=0.5, live=live))
        return super().generate(request, progress=progress, cancel=cancel)


def test_the_playlist_is_told_once_as_soon_as_it_can_be_played(capsys: pytest.CaptureFixture[str]) -> None:
    Generate(GenerateConfig(request=ASKED)).run(Publishing())
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("multitalk: live: films/talk.live/index.m3u8") == 1
    Generate(GenerateConfig(request=ASKED, quiet=True)).run(Publishing())
    assert "live" not in capsys.readouterr().err


def test_windows_outside_their_limits_are_named_in_one_line_and_good_ones_in_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    windows = tuple(
        WindowReport(number, 0.0, 3.0, {"seam": 4.5678, "sharpness": 0.5}, {}, ("seam", "sharpness"), 1.7)
        for number in range(1, 8)
    )
    limits = {"seam": Limit(None, 3.0), "sharpness": Limit(0.6, 1.5)}
    report = Report(tuple(range(1, 8)), (), windows, limits, {}, 0.1)
    Generate(GenerateConfig(request=ASKED, quiet=True)).run(FakeService(report=report))
    line = capsys.readouterr().err.splitlines()[-1]
    figures = "(seam 4.57, at most 3, sharpness 0.5, at least 0.6)"
    named = "; ".join(f"window {number} {figures}" for number in range(1, 6))
    assert line == f"multitalk: report: 7 of 7 windows outside the limits: {named}; 2 more"
    good = replace(report, below=(), windows=(replace(windows[0], below=()),))
    Generate(GenerateConfig(request=ASKED, quiet=True)).run(FakeService(report=good))
    assert "report" not in capsys.readouterr().err


def test_a_plan_says_what_retakes_may_cost_at_most() -> None:
    request = Request(prompt="one", image="a.png", speakers=(Speaker(None),) * 2)
    text = describe(replace(PLAN, retakes=2, most_forwards=3 * PLAN.forwards), request)
    assert "retakes   a window outside the report's limits is made again, at most 2 times: " in text
    assert f"at most {3 * PLAN.forwards} forwards" in text
    assert "retakes" not in describe(PLAN, request)


def test_json_is_the_last_line_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    Generate(GenerateConfig(request=ASKED, json=True)).run(FakeService())
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(answer) == [
        "address",
        "content",
        "sha256",
        "bytes",
        "warnings",
        "media_type",
        "seconds",
        "frames",
        "fps",
        "seed",
        "timings",
        "plan",
        "overlapped",
        "memory",
        "forwards",
        "prompts_reused",
        "windows_taken_over",
        "live",
        "peaks",
        "report",
    ]
    assert answer["address"] == "films/talk.mp4"
    assert answer["plan"]["weights"] == "weights/tiny"
    assert answer["plan"]["seats"][1]["silent"] is True


def test_a_video_without_an_address_is_handed_over_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    Generate(GenerateConfig(request=ASKED, quiet=True)).run(FakeService(address=None))
    assert capsys.readouterr().out == "AAAA\n"


def test_a_dry_run_makes_nothing_and_says_everything(capsys: pytest.CaptureFixture[str]) -> None:
    service = FakeService(interrupt=True)
    assert Generate(GenerateConfig(request=ASKED, dry_run=True)).run(service) == 0
    text = capsys.readouterr().out
    for part in (
        "tiny, resolution small",
        "1024 x 768, scaled to 171 x 128, cut to 128 x 128 at (21, 0)",
        "1: in [0, 0, 64, 128] (auto), a.wav, 0.25 s to 1.75 s",
        "2: in [64, 0, 128, 128] (box), silent",
        "100 frames at 25 per second, 4.00 s, seed 3",
        "2: frames 56 to 100, 25 of them repeated, 19 kept",
        "euler (standard), 10 steps, guidance cfg, 2 passes per step: 40 forwards in all",
        "untrained: the video shows noise",
    ):
        assert part in text


def test_a_dry_run_as_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    Generate(GenerateConfig(request=ASKED, dry_run=True, json=True)).run(FakeService())
    plan = json.loads(capsys.readouterr().out)
    assert list(plan)[:4] == ["model", "resolution", "untrained", "canvas"]
    assert plan["windows"][1] == {"index": 1, "start": 56, "frames": 45, "motion": 25, "keep": 19}


def test_many_windows_are_told_in_short() -> None:
    windows = tuple(Window(i, 56 * i, 81, 25 if i else 0, 56) for i in range(40))
    many = Plan(**{**vars(PLAN), "windows": windows})
    text = describe(many, make_request(ASKED))
    assert "... 35 more ..." in text
    assert "40: frames 2184 to 2264" in text


@pytest.mark.parametrize(
    "address", ["https://media.example/a.wav?X-Amz-Signature=s3cr3t", "data:audio/wav;base64,s3cr3t"]
)
def test_a_plan_shows_no_presigned_query_and_no_media(address: str) -> None:
    asked = replace(make_request(ASKED), speakers=(Speaker(address), Speaker(None)))
    text = describe(PLAN, asked)
    assert "s3cr3t" not in text
    assert "media.example/[hidden]" in text or "data:[hidden]" in text


def test_a_preview_is_drawn_before_the_video(tmp_path: Path) -> None:
    preview = tmp_path / "who.png"
    Generate(GenerateConfig(request=ASKED, preview=str(preview), dry_run=True)).run(FakeService())
    assert preview.read_bytes() == b"PNG"


def test_a_preview_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    preview = str(tmp_path / "none" / "who.png")
    with pytest.raises(SinkError, match=r"entrypoint\.preview: cannot write .*No such file"):
        Generate(GenerateConfig(request=ASKED, preview=preview)).run(FakeService())


def test_an_interrupt_becomes_the_cancel_token_and_the_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Cancelled, match="cancelled during denoise"):
        Generate(GenerateConfig(request=ASKED, quiet=True)).run(FakeService(interrupt=True))
    assert signal.getsignal(signal.SIGINT) is before


def test_it_runs_outside_the_main_thread() -> None:
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(Generate(GenerateConfig(request=ASKED, quiet=True)).run(FakeService()))
    )
    thread.start()
    thread.join()
    assert status == [0]


def test_a_request_to_terminate_cancels_as_an_interrupt_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible() as cancel:
        signal.raise_signal(signal.SIGTERM)
        assert cancel.is_set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines_come_once_a_tenth() -> None:
    told: list[str] = []
    tell = lines(told.append)
    tell(Progress("read"))
    assert told == []  # a wrong request is one line, the error
    for done in range(101):
        tell(Progress("denoise", fraction=done / 100))
    assert len(told) == 11
    assert told[0].startswith("  0%")
    assert told[-1].startswith("100%")


def test_state_leaves_out_what_does_not_apply() -> None:
    assert state(Progress("load")) == "load"
    assert state(Progress("decode", window=2, windows=3)) == "decode, window 2/3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, r"request\.image: no picture; give --image"),
        ({"prompt": None}, r"request\.prompt: no prompt"),
        ({"audio": []}, r"request\.audio: no voice; give --audio"),
        (
            {"speakers": '{"speakers": [{"audio": "a.wav"}]}'},
            r"request\.speakers: 2 voices are given by --audio and 1 speakers by --speakers; write each voice next to",
        ),
    ],
)
def test_a_wrong_request_names_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_request(RequestConfig(**{**vars(ASKED), **change}))
