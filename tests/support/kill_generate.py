"""Kill `generate` at random points and start it again: `python tests/support/kill_generate.py [ROUNDS] [SEED]`.

Prints one JSON object with what each round found; exits with 1 where one left a file that passes for a video and is
none, or anything in the folder of videos after the next run.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av

EXAMPLES = Path(__file__).parents[2] / "engine" / "examples"
FRAMES = 5
#: What is waited for before the last, random wait: the process alone, its folder of temporary files, its unfinished
#: video, its finished one.
POINTS = ("start", "folder", "part", "video")
#: The longest of those waits, in seconds. From the start a run takes some seconds.
WAITS = {"start": 8.0, "folder": 3.0, "part": 0.3, "video": 0.02}


@dataclass
class Round:
    """What happened to one run."""

    seed: int
    point: str
    #: Waited after the point.
    seconds: float
    killed: bool = False
    #: Whether the video stood under its name when it was killed.
    delivered: bool = False
    #: Folders of temporary files left by the killed run, and after the next.
    folders: int = 0
    folders_after: int | None = None
    problems: list[str] = field(default_factory=list)


def run_round(seed: int, home: Path, *, again: bool = True) -> Round:
    """Kill one run at a point that `seed` chooses, look at what it left, and have the next make the same video."""
    chance = random.Random(seed)
    point = POINTS[seed % len(POINTS)]
    found = Round(seed, point, round(chance.uniform(0, WAITS[point]), 4))
    temporary = home / "tmp"
    temporary.mkdir()
    film = home / "films" / "film.mp4"
    process = start(home)
    reached: dict[str, Callable[[], bool]] = {
        "start": lambda: True,
        "folder": lambda: any(temporary.glob("multitalk-*")),
        "part": lambda: any(temporary.glob("multitalk-*/.*.part")),
        "video": lambda: film.exists() or any(temporary.glob("multitalk-*/*.mp4")),
    }
    while not reached[point]() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(found.seconds)
    found.killed = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found.delivered = film.exists()
    found.problems += look(home)
    found.folders = len(list(temporary.glob("multitalk-*")))
    if again:
        process = start(home)
        _, errors = process.communicate(timeout=600)
        told = errors.decode().strip().rpartition("\n")[2]
        # A whole video of that name is not replaced.
        if process.returncode != (2 if found.delivered else 0):
            found.problems.append(f"the next run ends with {process.returncode}: {told}")
        found.problems += [f"after the next run: {problem}" for problem in look(home)]
        left = [path.name for path in (home / "films").glob("*") if path != film]
        if left or not film.exists():
            found.problems.append(f"after the next run there are {left}, and film.mp4 is {film.exists()}")
        found.folders_after = len(list(temporary.glob("multitalk-*")))
        if found.folders_after:
            found.problems.append(f"after the next run {found.folders_after} temporary folders are left")
    return found


def start(home: Path) -> subprocess.Popen[bytes]:
    """Begin to make films/film.mp4 below `home`."""
    words = [
        *(sys.executable, "-m", "engine", "generate", "--image", str(EXAMPLES / "one.png")),
        *("--audio", str(EXAMPLES / "one.flac"), "--prompt", "A woman speaks.", "--frames", str(FRAMES)),
        *("--output", str(home / "films" / "film.mp4"), "--quiet", "model=tiny", "source=packaged", "sampler=turbo"),
    ]
    environment = os.environ | {"TMPDIR": str(home / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def look(home: Path) -> list[str]:
    """Return what passes for a video below `home`, by its name, and is none."""
    return [
        f"{path.relative_to(home)} of {path.stat().st_size} bytes is no whole video"
        for path in home.rglob("*")
        if path.suffix == ".mp4" and not path.name.startswith(".") and not whole(path)
    ]


def whole(path: Path) -> bool:
    """Whether all frames of a video can be decoded."""
    try:
        with av.open(str(path)) as file:
            return sum(1 for _ in file.decode(video=0)) == FRAMES
    except (av.FFmpegError, IndexError):
        return False


def main(rounds: int = 30, seed: int = 1) -> int:
    """Run so many rounds and print what they found."""
    found = []
    for number in range(seed, seed + rounds):
        with tempfile.TemporaryDirectory(prefix="kill-") as home:
            found.append(run_round(number, Path(home)))
        print(found[-1], file=sys.stderr, flush=True)
    wrong = [asdict(one) for one in found if one.problems]
    print(
        json.dumps(
            {
                "rounds": rounds,
                "killed": sum(one.killed for one in found),
                "delivered": sum(one.delivered for one in found),
                "with_folders": sum(one.folders > 0 for one in found),
                "with_folders_after_the_next_run": sum(bool(one.folders_after) for one in found),
                "problems": wrong,
                "found": [asdict(one) for one in found],
            }
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
