"""What keeping states costs: `measure_states.py [FRAMES] [OVERRIDE ...]` makes a video and prints figures as JSON.

`waited` is what the video itself waits for, `beside` the work of the thread that stores states, in seconds of
processor time; both for each window, and as a share of a window's time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine import EngineService, Request, Speaker
from engine.assembly.resuming import Keeping
from engine.files.aside import Aside

EXAMPLES = files("engine") / "examples"


def main(frames: int, overrides: tuple[str, ...]) -> int:
    """Make a video with states and print what they cost."""
    spent: defaultdict[str, float] = defaultdict(float)
    sizes: list[int] = []

    def timed(name: str, call: Callable[..., Any], clock: Callable[[], float]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = clock()
            try:
                return call(*args)
            finally:
                spent[name] += clock() - began

        return run

    begin: Any = Aside.begin
    Keeping.made = timed("waited", Keeping.made, time.perf_counter)  # type: ignore[method-assign]
    Keeping.segment = timed("waited", Keeping.segment, time.perf_counter)  # type: ignore[method-assign]
    Aside.begin = lambda self, call: begin(self, timed("beside", call, time.thread_time))  # type: ignore[method-assign]
    request = Request(
        "A woman speaks.", str(EXAMPLES / "one.png"), (Speaker(str(EXAMPLES / "one.flac")),), frames=frames
    )
    with tempfile.TemporaryDirectory() as folder:
        states = Path(folder) / "states"
        keys = (f"sink.folder={folder}", f"resume.folder={states}", "resume.keep=true", "model=tiny", "device=cpu")
        service = EngineService([*keys, *overrides])
        service.load()
        delivery = service.generate(request)
        sizes += [path.stat().st_size for path in states.rglob("*.state")]
        segments = [path.stat().st_size for path in states.rglob("*.segment")]
        service.close()
    windows = len(delivery.plan.windows)
    stages = ("encode", "denoise", "decode", "write")
    seconds = sum(delivery.timings[stage] for stage in stages) / windows
    report = {
        "windows": windows,
        "window_seconds": round(seconds, 3),
        **{f"{name}_seconds": round(value / windows, 5) for name, value in spent.items()},
        **{f"{name}_share": round(value / windows / seconds, 5) for name, value in spent.items()},
        "largest_state_bytes": max(sizes),
        "last_state_bytes": min(sizes),
        "largest_segment_bytes": max(segments),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    words = sys.argv[1:] or ["225"]
    sys.exit(main(int(words[0]), tuple(words[1:]) or ("sampler=turbo",)))
