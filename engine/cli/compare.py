"""`multitalk compare`: writes an HTML page with the videos of a sweep side by side."""

from __future__ import annotations

from pathlib import Path

from engine.sweeps.page import write_page
from engine.sweeps.runs import read_runs


def compare(folder: Path) -> int:
    """Write index.html for the runs in `folder` and print its path. Raises RequestError and SinkError."""
    print(write_page(folder, read_runs(folder)))
    return 0
