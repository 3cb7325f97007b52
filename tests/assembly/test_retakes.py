"""A window outside its limits is made again, the best attempt stays, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from worker_fakes import PLAN

from engine.assembly.retakes import Retakes
from engine.data import Canvas, Frames, Limit, Window
from engine.errors import EngineError, RequestError
from engine.evaluation.judge import Judge
from engine.evaluation.likeness import Pictures
from engine.family import Finished

WINDOWS = tuple(Window(index, 5 * index, 5, 0, 5) for index in range(3))
Attempt = Callable[[torch.Generator], Finished]


@cache
def picture() -> Pictures:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


def judge() -> Judge:
    plan = replace(PLAN, canvas=Canvas((48, 32), (48, 32), (48, 32), (0, 0), "crop"), seats=(), windows=WINDOWS)
    return Judge([picture()], plan, [], {"blank": Limit(None, 0.0)})


def blank(number: int) -> Pictures:
    """Five frames, of which `number` are black."""
    frames = np.stack([picture()] * 5)
    frames[:number] = 0
    return frames


def attempts_of(*blanks: int | str, seen: list[int] | None = None) -> Attempt:
    """Return attempts with so many black frames, one after the other; a text is a broken window."""
    left = list(blanks)

    def attempt(generator: torch.Generator) -> Finished:
        drawn = int(torch.randint(1000, (), generator=generator))
        if seen is not None:
            seen.append(drawn)
        one = left.pop(0)
        if isinstance(one, str):
            raise EngineError(one, code="broken_window")
        return Finished(Frames(blank(one), 25.0), {"blank": torch.zeros(1) + one})

    return attempt


def made(most: int, *windows: Sequence[int | str], seed: int = 3) -> tuple[Retakes, list[float], list[int], int]:
    """Return the retakes, the kept windows' black frames, numbers drawn for noise, and how often one was made again."""
    again: list[None] = []
    seen: list[int] = []
    retakes = Retakes(judge(), most, torch.Generator().manual_seed(seed), lambda: again.append(None))
    kept = [
        float(retakes.make(window, attempts_of(*blanks, seen=seen)).carried["blank"])
        for window, blanks in zip(WINDOWS, windows, strict=False)
    ]
    return retakes, kept, seen, len(again)


def test_a_good_window_is_made_once() -> None:
    retakes, kept, _, again = made(3, [0], [0])
    report = retakes.report()
    assert report is not None
    assert (kept, again, report.retaken, report.below) == ([0, 0], 0, (), ())
    assert report.line == ""


def test_a_bad_window_is_made_again_until_it_is_good() -> None:
    retakes, kept, _, again = made(3, [2, 1, 0, 5], [0])
    report = retakes.report()
    assert report is not None
    assert (kept, again, report.retaken, report.below) == ([0, 0], 2, (1,), ())
    assert [attempt.badness for attempt in report.windows[0].attempts] == [2, 1, 0]
    assert [attempt.kept for attempt in report.windows[0].attempts] == [False, False, True]
    assert report.windows[0].attempts[0].seed is None
    assert report.line == "made again: window 1 (attempt 3 of 3, badness 2 -> 0)"


def test_of_bad_attempts_the_best_is_kept_and_of_equal_ones_the_first() -> None:
    retakes, kept, _, again = made(3, [3, 2, 4, 2])
    report = retakes.report()
    assert report is not None
    assert (kept, again, report.below) == ([2], 3, (1,))
    assert [attempt.kept for attempt in report.windows[0].attempts] == [False, True, False, False]
    assert report.line.startswith(
        "1 of 1 windows outside the limits: window 1 (blank 2, at most 0). made again: window 1"
    )


def test_a_broken_window_is_made_again_and_is_the_worst_of_all() -> None:
    retakes, kept, _, _ = made(2, ["window 1 contains NaN", 5, 4])
    report = retakes.report()
    assert report is not None
    assert kept == [4]
    assert report.windows[0].attempts[0].badness is None
    assert report.windows[0].attempts[0].below == ("window 1 contains NaN",)
    assert "badness no video -> 4" in report.line


def test_a_window_that_breaks_each_time_is_the_error_of_the_first_time() -> None:
    with pytest.raises(EngineError, match="first"):
        made(2, ["first", "second", "third"])


def test_without_retakes_a_broken_window_is_an_error_at_once() -> None:
    with pytest.raises(EngineError, match="first"):
        made(0, ["first", 0])


def test_another_error_is_no_attempt() -> None:
    def refuse(_: torch.Generator) -> Finished:
        raise RequestError("no", field="request.image")

    with pytest.raises(RequestError):
        Retakes(judge(), 3, torch.Generator(), lambda: None).make(WINDOWS[0], refuse)


def test_without_retakes_the_noise_is_what_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    usual = [int(torch.randint(1000, (), generator=generator)) for _ in range(3)]
    assert made(0, [3], [0], [1])[2] == usual
    # Neither is it another where all windows are good.
    assert made(5, [0], [0], [0])[2] == usual


def test_the_same_request_makes_the_same_attempts() -> None:
    blanks = ([2, 1, 0], [0], [1, 1, 1])
    assert made(2, *blanks)[2] == made(2, *blanks)[2] != made(2, *blanks, seed=4)[2]


def test_how_much_noise_a_retake_draws_changes_no_later_window() -> None:
    def last(draws: int) -> int:
        seen: list[int] = []
        retakes = Retakes(judge(), 1, torch.Generator().manual_seed(3), lambda: None)
        left = [1, 0]

        def attempt(generator: torch.Generator) -> Finished:
            one = left.pop(0)
            torch.rand(5 if one else draws, generator=generator)
            return Finished(Frames(blank(one), 25.0), {})

        retakes.make(WINDOWS[0], attempt)
        retakes.make(WINDOWS[1], attempts_of(0, seen=seen))
        return seen[0]

    assert last(5) == last(500)


def test_a_retake_is_the_video_of_its_seed() -> None:
    retakes, _, seen, _ = made(1, [1, 0])
    report = retakes.report()
    assert report is not None
    seed = report.windows[0].attempts[1].seed
    assert seed is not None
    assert seen[1] == int(torch.randint(1000, (), generator=torch.Generator().manual_seed(seed)))


def test_without_a_judge_there_is_no_report() -> None:
    retakes = Retakes(None, 3, torch.Generator(), lambda: None)
    assert float(retakes.make(WINDOWS[0], attempts_of(5)).carried["blank"]) == 5
    assert retakes.report() is None
