"""Code that is run as if it stood in a file of the engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine

ROOT = Path(engine.__file__).parent.parent


def called_from(file: str, code: str, **names: Any) -> Any:
    """Run `code`, which makes `found`, as if it stood in a file of the engine."""
    exec(compile(code, str(ROOT / file), "exec"), names)
    return names.get("found")
