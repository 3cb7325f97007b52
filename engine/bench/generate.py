"""Time whole videos of the embedded model in new processes, by stage, beside another version of the engine, as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from engine.bench.memory import write_voice
from engine.errors import EngineError, RequestError

_TURBO = ("sampler=turbo",)
#: What each case adds to the command. Only flags that older versions know, too.
CASES: Mapping[str, tuple[str, ...]] = {
    "start": (*_TURBO, "resolution=small"),
    "turbo-small": (*_TURBO, "resolution=small"),
    "turbo-large": (*_TURBO, "resolution=large"),
    "standard-small": ("resolution=small",),
    "standard-large": ("resolution=large",),
}
#: Frames of the case "start", one window of a few, where a process mostly imports and reads.
_START = 5
_RATE = 25
_COMPILE = """
from compileall import compile_dir
from importlib.util import find_spec
for package in ("engine", "plugins"):
    spec = find_spec(package)
    for folder in spec.submodule_search_locations if spec else ():
        compile_dir(folder, quiet=2)
"""


@dataclass(frozen=True)
class _Version:
    """A version of the engine: the Python that runs it, and a folder that comes first on its path."""

    python: str
    path: str = ""


def run(rounds: int = 3, frames: int = 6 * _RATE, cases: str = ",".join(CASES), against: str = "") -> dict[str, Any]:
    """Make the video of each of `cases`, separated by commas, `rounds` times; medians count.

    Two people talk for `frames` frames at 25 frames a second; the case `start` has 5 frames of one person. `against` is
    a checkout with an environment of its own (`.venv`), or a wheel, which this Python runs: both versions are then
    measured in turn, and `ratio` is this version's figure divided by the other's. `cpu` is processor time of the whole
    process, on one thread; stages are seconds of the answer's `timings`. The engine's bytecode is written first,
    as pip does. Raises RequestError for an unknown case or version, EngineError if a video fails.
    """
    names = cases.split(",")
    for name in names:
        if name not in CASES:
            raise RequestError(f"no case named {name!r}", field="bench generate", hint=", ".join(CASES))
    if frames < _START or rounds < 1:
        raise RequestError(
            f"{frames} frames, {rounds} rounds", field="bench generate", hint="5 frames, 1 round or more"
        )
    with tempfile.TemporaryDirectory(prefix="multitalk-generate-") as folder:
        versions = {"this": _Version(sys.executable)}
        if against:
            versions["other"] = _version(Path(against), Path(folder))
        for version in versions.values():
            _compile(version, Path(folder))
        report = {name: _case(name, frames, rounds, versions, Path(folder)) for name in names}
    return {
        "bench": "generate",
        "model": "tiny",
        "rounds": rounds,
        "frames": frames,
        "against": against,
        "cases": report,
    }


def _version(source: Path, folder: Path) -> _Version:
    if source.suffix == ".whl" and source.is_file():
        with zipfile.ZipFile(source) as wheel:
            wheel.extractall(folder / "wheel")
        return _Version(sys.executable, str(folder / "wheel"))
    python = source.absolute() / ".venv" / "bin" / "python"
    if not python.exists():
        hint = "a wheel, or a checkout with .venv, in which it is installed"
        raise RequestError(f"{source} cannot be run", field="bench generate --against", hint=hint)
    return _Version(str(python))


def _case(
    name: str, frames: int, rounds: int, versions: Mapping[str, _Version], folder: Path
) -> dict[str, dict[str, float]]:
    rows: dict[str, list[dict[str, float]]] = {version: [] for version in versions}
    words = _words(name, frames, folder)
    for number in range(rounds):
        # The other one goes first in every second round: what warms up or slows down the machine affects both.
        for version in list(versions)[:: -1 if number % 2 else 1]:
            rows[version].append(_run(versions[version], words, folder))
    report = {version: _medians(runs) for version, runs in rows.items()}
    if "other" in report:
        other = report["other"]
        report["ratio"] = {part: value / other[part] for part, value in report["this"].items() if other.get(part)}
    return report


def _medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: median(run.get(part, 0.0) for run in runs) for part in runs[0]}


def _words(name: str, frames: int, folder: Path) -> list[str]:
    examples = files("engine") / "examples"
    one = name == "start"
    frames = _START if one else frames
    words = ["generate", "--image", str(examples / ("one.png" if one else "two.png")), "--prompt", "people talk"]
    for index in range(1 if one else 2):
        voice = folder / f"voice{index}.wav"
        write_voice(voice, frames / _RATE + 0.5)
        words += ["--audio", str(voice)]
    words += ["--frames", str(frames), "--output", str(folder / "video.mp4"), "--json", "--quiet"]
    return [*words, "model=tiny", "device=cpu", "sink.overwrite=true", *CASES[name]]


def _environment(version: _Version) -> dict[str, str]:
    surroundings = os.environ | {"OMP_NUM_THREADS": "1"}
    surroundings.pop("PYTHONPATH", None)
    if version.path:
        surroundings["PYTHONPATH"] = version.path
    return surroundings


def _compile(version: _Version, folder: Path) -> None:
    """Write the engine's bytecode, as pip does: else every process would compile a version from its source again."""
    words = [version.python, "-c", _COMPILE]
    subprocess.run(words, env=_environment(version), cwd=folder, stdout=subprocess.DEVNULL, check=True)


def _run(version: _Version, words: Sequence[str], folder: Path) -> dict[str, float]:
    began = time.monotonic()
    with (folder / "log").open("w+b") as log:
        # Not in this folder: Python would take the engine from it.
        process = subprocess.Popen(
            [version.python, "-m", "engine", *words], stdout=log, stderr=log, env=_environment(version), cwd=folder
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
        log.seek(0)
        lines = log.read().decode("utf-8", "replace").splitlines()
    if process.returncode:
        raise EngineError(lines[-1] if lines else "a video failed", field="bench generate", hint=version.python)
    answer = next(line for line in reversed(lines) if line.startswith("{"))
    timings: dict[str, float] = json.loads(answer)["timings"]
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, **timings}
