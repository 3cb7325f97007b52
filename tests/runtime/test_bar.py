"""On a terminal the bar moves at least once a second, however long a piece of work takes."""

from __future__ import annotations

import os
import pty
import re
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest

from engine.runtime.bar import TimedProgress, elapsed, extrapolate

STEP = TimedProgress("denoise", 1, 2, 3, 10, fraction=0.2, remaining=80.0, ahead=0.1, expected=10.0)

#: Like a generation: nothing for a while, then one long step, then the end.
SCRIPT = textwrap.dedent(
    """
    import time

    from engine.runtime.bar import TimedProgress
    from plugins.entrypoints.generate import progress_display

    with progress_display(quiet=False) as tell:
        time.sleep(2.5)
        tell(TimedProgress("denoise", 1, 1, 1, 10, fraction=0.2, remaining=30.0, ahead=0.5, expected=15.0))
        time.sleep(3)
        tell(TimedProgress("decode", 1, 1, fraction=0.8, remaining=6.0, ahead=0.2, expected=6.0))
        time.sleep(0.5)
    print("films/talk.mp4", flush=True)
    """
)


def watch(script: str) -> list[tuple[float, str]]:
    """Run a script on a terminal of its own; return when which text stood there, changes alone."""
    child, terminal = pty.fork()
    if not child:
        os.environ |= {"TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(Path(__file__).parents[2])}
        os.execv(sys.executable, [sys.executable, "-c", script])
    seen: list[tuple[float, str]] = []
    while True:
        try:
            found = os.read(terminal, 65536)
        except OSError:  # its end, on Linux
            break
        # What stands there after the last line was erased. Colours move too; what people read is the text.
        drawn = found.decode("utf-8", "replace").rpartition("\x1b[2K")[2]
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", drawn).strip()
        if text and (not seen or seen[-1][1] != text):
            seen.append((time.monotonic(), text))
    os.close(terminal)
    assert os.waitpid(child, 0)[1] == 0, seen
    return seen


@pytest.fixture(scope="module")
def seen() -> list[tuple[float, str]]:
    return watch(SCRIPT)


def test_something_moves_each_second(seen: list[tuple[float, str]]) -> None:
    # Half a second for a machine that has other things to do.
    assert max(later - earlier for (earlier, _), (later, _) in pairwise(seen)) < 1.5
    assert len(seen) > 10


def test_libraries_that_load_are_named_with_the_time_that_passed(seen: list[tuple[float, str]]) -> None:
    loading = [text for _, text in seen if text.endswith("loading libraries")]
    told = [found[1] for text in loading if (found := re.search(r" (\d:\d\d) ", text))]
    assert told[0] == "0:00"
    assert len(set(told)) >= 2


def test_time_that_passed_and_is_left_is_shown_and_the_bar_moves_within_a_step(seen: list[tuple[float, str]]) -> None:
    steps = [text for _, text in seen if "denoise, window 1/1, step 1/10" in text]
    assert re.search(r"2\d% 0:0[23] denoise.*, 0:(30|29) left", steps[0])
    told = [int(found[1]) for text in steps if (found := re.search(r"(\d+)%", text))]
    assert told == sorted(told)
    assert 25 <= told[-1] <= 70
    assert re.search(r"0:2\d left", steps[-1])


def test_bar_is_gone_in_the_end_and_the_address_stays(seen: list[tuple[float, str]]) -> None:
    assert seen[-1][1] == "films/talk.mp4"


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0, 10.0, 100.0, 1e6])
def test_bar_never_passes_the_next_sign_of_life(seconds: float) -> None:
    shown = extrapolate(STEP, seconds)
    assert 0.2 <= shown.fraction < 0.3001
    assert shown.remaining is not None
    assert 70.0 <= shown.remaining <= 80.0
    later = extrapolate(STEP, seconds + 1)
    assert later.fraction >= shown.fraction


def test_piece_of_which_nothing_is_known_moves_slowly() -> None:
    first = TimedProgress("encode", 1, 1, fraction=0.0, ahead=0.2)
    assert [extrapolate(first, seconds).fraction > 0 for seconds in (0.0, 1.0)] == [False, True]
    assert extrapolate(first, 1.0).remaining is None


def test_long_times_have_hours() -> None:
    assert [elapsed(seconds) for seconds in (0, 59.9, 61, 3661)] == ["0:00", "0:59", "1:01", "1:01:01"]
