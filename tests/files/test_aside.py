"""Calls to a disk run aside, and a caller waits no longer than agreed."""

from __future__ import annotations

import errno
import threading
import time
from functools import partial

import pytest

from engine.errors import Cancelled
from engine.files.aside import Aside, Stalled


def test_calls_run_in_turn_and_return_what_they_do() -> None:
    aside, order = Aside("test", 10), list[int]()

    def double(number: int) -> int:
        order.append(number)
        return number * 2

    calls = [aside.begin(partial(double, number)) for number in range(3)]
    assert [aside.wait(call) for call in calls] == [0, 2, 4]
    assert order == [0, 1, 2]
    aside.end()


def test_an_error_is_raised_where_the_result_is_awaited() -> None:
    aside = Aside("test", 10)

    def fail() -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        aside.wait(aside.begin(fail))
    aside.end()


def test_a_call_without_progress_is_given_up_and_one_with_progress_is_not() -> None:
    aside, go = Aside("test", 0.3), threading.Event()

    def progress() -> str:
        for _ in range(8):
            time.sleep(0.1)
            aside.beat()
        return "done"

    assert aside.wait(aside.begin(progress)) == "done"
    with pytest.raises(Stalled, match=r"no answer for 0.3 s"):
        aside.wait(aside.begin(go.wait))
    go.set()
    aside.end()


def test_a_cancelled_caller_does_not_wait() -> None:
    aside, go = Aside("test", 60), threading.Event()

    def cancelled() -> None:
        raise Cancelled("resume")

    with pytest.raises(Cancelled):
        aside.wait(aside.begin(go.wait), check=cancelled)
    go.set()
    aside.end()


def test_a_time_limit_ends_the_wait_although_there_is_progress() -> None:
    aside, go = Aside("test", 60), threading.Event()
    with pytest.raises(Stalled):
        aside.wait(aside.begin(go.wait), most=0.1)
    go.set()
    aside.end()
