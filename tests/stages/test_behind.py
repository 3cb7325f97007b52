"""Writing beside the next window's work: the same bytes, bounded memory, and errors and cancels that come through."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from full_disk import file_limit

from engine.data import Frames
from engine.errors import Cancelled, SinkError
from engine.stages.behind import WriteBehind
from engine.stages.write import VideoOptions, Writer

SIZE = (64, 48)


def noise(count: int, seed: int = 0) -> Frames:
    return Frames(np.random.default_rng(seed).integers(0, 256, (count, *SIZE[::-1], 3), np.uint8), 25.0)


class Slow(Writer):
    """Takes a while for each call, and counts frames as they come."""

    #: Set while a frame is being written; the test lets it go on.
    held: threading.Event | None = None
    seconds = 0.0

    def add(self, frames: Frames) -> None:
        if self.held is not None:
            self.held.wait(10)
        time.sleep(self.seconds)
        super().add(frames)


def test_the_video_has_the_same_bytes_with_and_without(tmp_path: Path) -> None:
    files = []
    for overlap in (False, True):
        path = tmp_path / f"{overlap}.mp4"
        sound = np.random.default_rng(1).standard_normal((48_000, 2)).astype(np.float32) * 0.1
        with Writer(path, SIZE, 25.0, sound) as file, WriteBehind(file, overlap=overlap) as writer:
            for window in range(4):
                writer.add(noise(5 + window, window))
            assert writer.finish().frames == 26
        files.append(path.read_bytes())
    assert files[0] == files[1]


def test_adding_returns_at_once_and_only_one_window_is_under_way(tmp_path: Path) -> None:
    with Slow(tmp_path / "a.mp4", SIZE, 25.0) as file, WriteBehind(file) as writer:
        file.held = threading.Event()
        writer.add(noise(2))
        # The second waits for the first, so a third window cannot be in memory.
        waiting = threading.Thread(target=writer.add, args=(noise(2),))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert file.segments == 0
        file.held.set()
        waiting.join(10)
        assert file.segments >= 1
        assert writer.finish().frames == 4


def test_seconds_beside_other_work_are_those_that_nobody_waited_for(tmp_path: Path) -> None:
    with Slow(tmp_path / "a.mp4", SIZE, 25.0) as file, WriteBehind(file) as writer:
        file.seconds = 0.05
        writer.add(noise(10))
        time.sleep(0.3)
        writer.finish()
        whole = writer.overlapped
    assert 0.25 < whole < 1.5
    with Slow(tmp_path / "b.mp4", SIZE, 25.0) as file, WriteBehind(file, overlap=False) as writer:
        writer.add(noise(2))
        writer.finish()
        assert writer.overlapped == 0


@pytest.mark.parametrize("seen", ["check", "add", "finish"])
def test_a_full_disk_is_reported_by_the_next_call_and_leaves_no_file(seen: str, tmp_path: Path) -> None:
    def fill() -> None:
        options = VideoOptions(preset="ultrafast", crf=0)
        with Writer(tmp_path / "a.mp4", SIZE, 25.0, options=options) as file, WriteBehind(file) as writer:
            writer.add(noise(60))
            if seen == "check":
                for _ in range(200):
                    writer.check()
                    time.sleep(0.05)
            (writer.finish if seen == "finish" else lambda: writer.add(noise(1)))()

    with file_limit(1000), pytest.raises(SinkError, match="cannot be written") as caught:
        fill()
    assert "space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["finish", "elsewhere"])
def test_a_cancel_while_frames_are_written_lets_go_within_a_second(where: str, tmp_path: Path) -> None:
    cancel = threading.Event()
    began: list[float] = []

    def generate() -> None:
        with Slow(tmp_path / "a.mp4", SIZE, 25.0) as file, WriteBehind(file, cancel=cancel) as writer:
            # A minute of work.
            file.seconds = 0.1
            writer.add(noise(600))
            began.append(time.monotonic())
            if where == "elsewhere":
                raise Cancelled("denoise")
            cancel.set()
            writer.finish()

    with pytest.raises(Cancelled):
        generate()
    assert time.monotonic() - began[0] < 1
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("multitalk-write")]
