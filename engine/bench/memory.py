"""Does memory grow with the length of a video? Peak resident memory for several lengths, as JSON."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import wave
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.errors import RequestError
from engine.runtime.memory import forget_peak, status

#: Frames of the warm-up: two windows, so that a continuation has also run.
WARM = 106
_KIB = 1024


def run(short: int = 162, long: int = 1000, steps: int = 2) -> dict[str, Any]:
    """Make a video of `short` and one of `long` frames in new processes and compare the peaks; Linux only.

    Each process loads the engine, warms it up with a video of two windows, resets its peak and then makes its video,
    `steps` steps per window, with a voice of that length. `growth_kib_per_frame` is by how much the peak above the warm
    engine grows per frame.
    """
    if not WARM < short < long:
        raise RequestError(f"{short} and {long} frames", field="bench memory", hint=f"more than {WARM}, then more")
    overrides = [f"sampler.steps={steps}"]
    rows = [_measure(frames, overrides) for frames in (short, long)]
    above = [row["peak_kib"] - row["warm_kib"] for row in rows]
    return {
        "bench": "memory",
        "model": "tiny",
        "overrides": overrides,
        "runs": rows,
        "growth_kib_per_frame": (above[1] - above[0]) / (long - short),
        "allowed_kib_per_frame": 64,
    }


def _measure(frames: int, overrides: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "engine.bench.memory", str(frames), *overrides]
    completed = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return row


def _child(frames: int, overrides: Sequence[str]) -> dict[str, Any]:
    from engine import EngineService, Request, Speaker

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        service = EngineService([f"sink.folder={folder}", *overrides])

        def make(length: int) -> None:
            voice = folder / f"{length}.wav"
            write_voice(voice, length / 25)
            picture = str(files("engine") / "examples" / "one.png")
            service.generate(Request("a person talks", picture, (Speaker(str(voice)),), frames=length))

        make(WARM)
        warm = forget_peak()
        make(frames)
        return {"frames": frames, "warm_kib": warm, "peak_kib": status("VmHWM")}


def write_voice(path: Path, seconds: float) -> None:
    """Write a WAV file of a tone that swells and fades four times a second: loud enough for the loudness meter."""
    rate = 16_000
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        second = bytearray()
        for i in range(rate):
            value = int(9000 * math.sin(math.tau * 220 * i / rate) * math.sin(math.tau * 2 * i / rate) ** 2)
            second += value.to_bytes(2, "little", signed=True)
        whole, rest = divmod(round(seconds * rate), rate)
        for _ in range(whole):
            file.writeframes(bytes(second))
        file.writeframes(bytes(second[: 2 * rest]))


if __name__ == "__main__":
    print(json.dumps(_child(int(sys.argv[1]), sys.argv[2:])))
