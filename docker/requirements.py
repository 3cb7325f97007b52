"""setup.cfg -> what an image installs before the engine, so that a changed engine does not send its libraries anew.

    python3 docker/requirements.py FOLDER [EXTRA ...]

Run beside setup.cfg and constraints.txt; needs only Python. FOLDER gets `heavy.txt`, the few pinned packages that are
most of the image, and `libraries.txt`, all that the engine and the extras require.
"""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from pathlib import Path

#: Gigabytes together, and seldom changed. The rest may change without them.
HEAVY = ("numpy", "torch", "torchao")


def requirements(setup: str, extras: list[str]) -> list[str]:
    """Return the requirements of the package and of `extras`, sorted. Raises KeyError for an extra it does not have."""
    parser = ConfigParser(interpolation=None)
    parser.read_string(setup)
    texts = [parser["options"]["install_requires"], *(parser["options.extras_require"][extra] for extra in extras)]
    return sorted({line for text in texts for line in text.split("\n") if line})


def heavy(required: list[str], constraints: str) -> list[str]:
    """Return the pins of the heavy packages among `required`. Raises ValueError where one is not pinned."""
    names = {re.split(r"[\s<>=!~\[;]", line, maxsplit=1)[0] for line in required}
    pins = {line.partition("==")[0]: line for line in constraints.split() if "==" in line}
    missing = [name for name in HEAVY if name in names and name not in pins]
    if missing:
        raise ValueError(f"constraints.txt does not pin {', '.join(missing)}")
    return [pins[name] for name in HEAVY if name in names]


def main() -> None:
    """Write both lists."""
    folder, *extras = sys.argv[1:]
    required = requirements(Path("setup.cfg").read_text("utf-8"), extras)
    pins = heavy(required, Path("constraints.txt").read_text("utf-8"))
    Path(folder, "heavy.txt").write_text("\n".join(pins) + "\n", "utf-8")
    Path(folder, "libraries.txt").write_text("\n".join(required) + "\n", "utf-8")


if __name__ == "__main__":
    main()
