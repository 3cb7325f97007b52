"""Print where engine/planning differs from reports of the bench."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from engine.bench.device.shares import corrections


def main(arguments: list[str] | None = None) -> int:
    """Read the named reports and print a line for each assumption of a plan."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.device", description=__doc__)
    parser.add_argument("file", nargs="+", type=Path, help="a report of multitalk bench device")
    reports = []
    for path in parser.parse_args(arguments).file:
        try:
            reports.append((str(path), json.loads(path.read_text("utf-8"))))
        except (OSError, ValueError) as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            return 2
    print("\n".join(corrections(reports)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
