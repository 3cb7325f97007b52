"""A disk sink that is killed at every call it makes: `python tests/support/killed_puts.py WAY FOLDER`.

Prints a JSON object: how many points were tried, what was found there, and what was wrong.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from engine.data import Artifact
from engine.errors import SinkError
from engine.files import atomic
from plugins.sinks.disk import DiskConfig, DiskSink

CONTENT = b"video" * 4000
#: Points tried at most, spread over all calls.
MOST = 60


def without(way: str) -> None:
    """Have the file system know one way fewer to name a file than the one before."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if way != "rename":
        atomic._renameat2 = lambda: None  # type: ignore[assignment]
    if way == "lock":
        os.link = refuse


def put(home: Path) -> str:
    """Keep the video as film.mp4; return "kept" or why not."""
    made = home / "made.mp4"
    made.write_bytes(CONTENT)
    sink = DiskSink(DiskConfig(folder=str(home / "kept")))
    try:
        sink.put(Artifact(made, "video/mp4", 1.0, 25, filename="film.mp4"))
    except SinkError as error:
        return "exists" if "exists" in str(error) else str(error)
    return "kept"


def in_child(work: Callable[[], Any]) -> int:
    """Return the exit status of `work` in a process of its own, which may not live to tell it."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def killed_at(point: int, home: Path) -> None:
    """Keep the video, and be killed at the so-manieth call of C or return from one."""
    left = point

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event.startswith("c_"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    put(home)
    sys.setprofile(None)


def calls(home: Path) -> int:
    """Return how many points there are: of a put that is not killed."""
    seen = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        seen += event.startswith("c_")

    sys.setprofile(count)
    put(home)
    sys.setprofile(None)
    return seen


def main(way: str, folder: str) -> int:
    """Try all points and print what was found."""
    without(way)
    # Parts of a process that was killed a moment ago are to be swept at once here.
    atomic._YOUNG = -1.0
    home = Path(folder)
    for name in ("first", "counted"):
        # The first imports what the others need not.
        (home / name).mkdir()
        total = calls(home / name)
    points = sorted({1 + number * total // MOST for number in range(MOST)})
    found: Counter[str] = Counter()
    wrong: list[str] = []
    for point in points:
        place = home / str(point)
        place.mkdir()
        killed = in_child(lambda at=point, into=place: killed_at(at, into)) == signal.SIGKILL  # type: ignore[misc]
        film = place / "kept" / "film.mp4"
        there = film.exists()
        found[f"{'killed' if killed else 'ended'}, {'whole' if there else 'absent'}"] += 1
        if there and film.read_bytes() != CONTENT:
            wrong.append(f"{point}: {film.stat().st_size} bytes under the final name")
        told = put(place)
        if told != ("exists" if there else "kept"):
            wrong.append(f"{point}: the next run says {told!r}, film.mp4 {'was' if there else 'was not'} there")
        left = [path.name for path in (place / "kept").iterdir() if path != film]
        if left:
            wrong.append(f"{point}: {left} are left")
    print(json.dumps({"calls": total, "points": len(points), "found": found, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
