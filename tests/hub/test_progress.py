"""Progress of a download: a bar on a terminal, lines elsewhere, with amount, rate and remaining time."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import requires

import pytest

from engine.hub import progress
from engine.hub.progress import Progress, say


class Arriving:
    """Bytes that are there, and what waits until they were looked at so many times more."""

    def __init__(self) -> None:
        self.size = 0
        self._looks = 0
        self._looked = threading.Condition()

    def measure(self) -> int:
        with self._looked:
            self._looks += 1
            self._looked.notify_all()
            return self.size

    def looked(self, times: int) -> None:
        with self._looked:
            wanted = self._looks + times
            assert self._looked.wait_for(lambda: self._looks >= wanted, timeout=30)


@pytest.fixture
def terminal() -> Iterator[tuple[io.TextIOWrapper, Callable[[], str]]]:
    """A terminal of 100 columns: the side to write to, and what reads the other one."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(ours, 65536):
                shown.append(piece)
        except OSError:
            return

    reader = threading.Thread(target=read)
    reader.start()
    out = io.TextIOWrapper(open(theirs, "wb", buffering=0), "utf-8", write_through=True)  # noqa: SIM115, PTH123

    def ended() -> str:
        out.close()
        reader.join(30)
        return b"".join(shown).decode()

    yield out, ended
    out.close()
    reader.join(30)
    os.close(ours)


def test_elsewhere_each_look_is_a_line_with_amount_rate_and_remaining_time() -> None:
    out, arriving = io.StringIO(), Arriving()
    arriving.size = 250_000
    with Progress(1_000_000, arriving.measure, out, pause=0.01):
        arriving.looked(1)
        arriving.size = 500_000
        arriving.looked(3)
        arriving.size = 1_000_000
    first, *_, last = lines = out.getvalue().splitlines()
    assert first == "250kB of 1.00MB (25%), ?B/s, ? left"
    assert re.fullmatch(r"1\.00MB of 1\.00MB \(100%\), \d\S*B/s, 00:00 left", last)
    assert any(re.fullmatch(r"500kB of 1\.00MB \(50%\), \d\S*B/s, \d\d:\d\d left", line) for line in lines), lines
    assert not any(character in out.getvalue() for character in "\r\x1b")


def test_a_terminal_shows_one_line_with_a_bar(terminal: tuple[io.TextIOWrapper, Callable[[], str]]) -> None:
    out, shown = terminal
    arriving = Arriving()
    with Progress(1_000_000, arriving.measure, out, pause=0.01):
        arriving.size = 500_000
        arriving.looked(3)
        arriving.size = 1_000_000
    text = shown()
    assert text.count("\n") == 1
    drawn = [line.strip() for line in text.split("\r")]
    assert any(re.fullmatch(r"50% \|█+ +\| 500kB of 1\.00MB, \S+B/s, \d\d:\d\d left", line) for line in drawn), drawn
    assert any(re.fullmatch(r"100% \|█+\| 1\.00MB of 1\.00MB, \S+B/s, 00:00 left", line) for line in drawn), drawn


def test_what_is_said_stands_above_the_bar(
    terminal: tuple[io.TextIOWrapper, Callable[[], str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, shown = terminal
    monkeypatch.setattr("sys.stderr", out)
    arriving = Arriving()
    with Progress(1_000_000, arriving.measure, out, pause=0.01):
        arriving.looked(2)
        say("downloaded model.safetensors")
        arriving.looked(2)
    (line,) = [line for line in shown().split("\n") if "downloaded" in line]
    assert line.split("\r")[-2:] == ["downloaded model.safetensors", ""]


def test_a_download_to_which_nothing_comes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SILENCE", 0.05)
    out, arriving = io.StringIO(), Arriving()
    with Progress(1_000_000, arriving.measure, out, pause=0.02):
        arriving.size = 1000
        arriving.looked(20)
        arriving.size = 2000
        arriving.looked(2)
    lines = out.getvalue().splitlines()
    silent = [line for line in lines if line.endswith("left, no data for 0 s")]
    assert silent
    assert all(line.startswith("1.00kB of 1.00MB") for line in silent)
    assert lines[-1].endswith("left")


def test_a_damaged_file_that_is_fetched_again_takes_its_bytes_back() -> None:
    out, arriving = io.StringIO(), Arriving()
    arriving.size = 900
    with Progress(1000, arriving.measure, out, pause=0.01):
        arriving.looked(2)
        arriving.size = 100
        arriving.looked(2)
    assert out.getvalue().splitlines()[-1].startswith("100B of 1.00kB (10%)")


def test_without_an_output_nothing_is_measured_in_the_background() -> None:
    before = threading.active_count()
    with Progress(1000, lambda: 10, None):
        assert threading.active_count() == before


def test_the_library_of_the_bar_is_wherever_huggingface_hub_is() -> None:
    # scripts/download_models.py needs nothing but huggingface-hub, which brings its HTTP library and YAML along.
    brought = {re.split(r"[^\w-]", line)[0] for line in requires("huggingface-hub") or () if "extra ==" not in line}
    assert {"tqdm", "pyyaml"} <= brought
