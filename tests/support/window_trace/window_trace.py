"""A plugin that notes each finished window in the file $WINDOW_TRACE: which process made which window."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from engine import hookimpl


@hookimpl
def window_finished(window: Any) -> None:
    """Append a line."""
    with Path(os.environ["WINDOW_TRACE"]).open("a", encoding="ascii") as file:
        file.write(f"{window.index + 1} {os.getpid()}\n")
