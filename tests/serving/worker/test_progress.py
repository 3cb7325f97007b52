"""Progress: the newest in order, at most one in its time, none after the pump is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from engine.data import Live, LivePart, Preview, Progress
from engine.serving.worker.progress_sender import ProgressSender, payload


def step(number: int) -> Progress:
    return Progress("denoise", 1, 2, number, 10, fraction=number / 20, remaining=61.4)


def test_a_payload_says_where_the_job_stands() -> None:
    assert payload(step(5)) == {
        "percent": 25,
        "stage": "denoise",
        "step": 5,
        "steps": 10,
        "window": 1,
        "windows": 2,
        "seconds_left": 61,
        "warnings": [],
    }
    assert payload(Progress("load"))["seconds_left"] is None


def test_warnings_are_known_while_the_work_goes_on_and_keep_secrets() -> None:
    progress = Progress("load", warnings=("the store wJalrXUtnFEMI is slow, see /runpod-volume/x",))

    assert payload(progress, ["wJalrXUtnFEMI"])["warnings"] == ["the store [hidden] is slow, see [path]"]


def test_many_signs_of_life_become_few_and_stay_in_order() -> None:
    steps: list[int] = []
    began = time.monotonic()
    sender = ProgressSender(lambda told: steps.append(told["step"]), every=0.1)
    for number in range(1, 31):
        sender.report(step(number))
        time.sleep(0.01)
    sender.close()
    took = time.monotonic() - began
    assert steps == sorted(set(steps))
    assert 2 <= len(steps) <= 1 + took / 0.1


def test_closing_waits_for_the_post_that_is_under_way() -> None:
    begun, gate = threading.Event(), threading.Event()
    sent: list[int] = []

    def post(told: Mapping[str, Any]) -> None:
        begun.set()
        gate.wait(5)
        sent.append(told["step"])

    sender = ProgressSender(post)
    sender.report(step(1))
    begun.wait(5)
    threading.Timer(0.05, gate.set).start()
    sender.close()
    assert sent == [1]


def test_nothing_is_sent_after_the_pump_is_closed() -> None:
    sent: list[int] = []
    first = threading.Event()

    def post(told: Mapping[str, Any]) -> None:
        sent.append(told["step"])
        first.set()

    sender = ProgressSender(post, every=60)
    sender.report(step(1))
    assert first.wait(10)
    sender.report(step(2))
    sender.close()
    sender.report(step(3))
    time.sleep(0.05)
    assert sent == [1]


def test_a_post_that_fails_costs_nothing_but_itself() -> None:
    sent: list[int] = []

    def post(told: Mapping[str, Any]) -> None:
        if told["step"] == 1:
            raise OSError("the platform is away")
        sent.append(told["step"])

    sender = ProgressSender(post, every=0.01)
    sender.report(step(1))
    time.sleep(0.05)
    sender.report(step(2))
    time.sleep(0.05)
    sender.close()
    assert sent == [2]


URL = "https://store.example.com/videos/job/live/index.m3u8?X-Amz-Signature=a"


def published(parts: int, *, window: int = 0, step: int = 0, ended: bool = False) -> Progress:
    live = Live(URL, tuple(LivePart(f"part-{n:05d}.m4s", 3.2 * n, 3.2) for n in range(parts)), ended)
    preview = Preview(b"jpeg", 4, window, step) if window else None
    return Progress("denoise", live=live if parts else None, preview=preview)


def test_a_payload_has_the_playlist_and_the_preview() -> None:
    told = payload(published(2, window=2, step=3))

    assert told["live"] == {"playlist": URL, "seconds": 6.4, "parts": 2, "ended": False}
    assert told["preview"] == {"image": "data:image/jpeg;base64,anBlZw==", "frames": 4, "window": 2, "step": 3}
    assert "X-Amz" not in repr(published(2))


def test_the_stream_has_every_part_once_and_the_previews_of_finished_windows() -> None:
    pieces: list[Mapping[str, Any]] = []
    sender = ProgressSender(lambda told: None, stream=pieces.append, every=0.0)
    updates = [published(0, window=1, step=1), published(1, window=1), published(1), published(4, window=2, step=2)]
    for update in updates:
        sender.report(update)
        time.sleep(0.05)
    # Not due before the end, and still sent.
    sender.report(published(5, ended=True))
    sender.close()

    live = [piece["live"] for piece in pieces if "live" in piece]
    assert [part["begins"] for told in live for part in told["parts"]] == [3.2 * n for n in range(5)]
    assert live[0]["parts"][0]["address"] == "https://store.example.com/videos/job/live/part-00000.m4s"
    assert [told["ended"] for told in live] == [False] * (len(live) - 1) + [True]
    assert [piece["preview"]["window"] for piece in pieces if "preview" in piece] == [1]
