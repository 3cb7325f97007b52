"""Progress: the newest in order, at most one in its time, none after the pump is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from engine.data import Progress
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
