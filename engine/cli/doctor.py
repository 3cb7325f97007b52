"""`multitalk doctor`: prints the problems of this machine and what to do about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from engine.cli.parser import Parser

_MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}


def doctor(arguments: Sequence[str]) -> int:
    """Check this machine for the config of the overrides in `arguments`; return 1 if something is broken.

    Raises ConfigError for overrides that cannot be composed.
    """
    parser = Parser(
        prog="multitalk doctor",
        usage="multitalk doctor [--json] [group=name key=value ...]",
        description="Look at Python, torch, driver, memory, attention, weights, disks, sink and RunPod's variables.",
    )
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, rest = parser.read(arguments)
    from engine.doctor.checks import examine
    from engine.errors import plain

    results = examine(rest)
    broken = [result for result in results if result.state == "broken"]
    if values.json:
        fields = [{key: value for key, value in asdict(result).items() if key != "more"} for result in results]
        print(json.dumps({"healthy": not broken, "findings": fields}))
        return 1 if broken else 0
    width = max(len(result.name) for result in results)
    for result in results:
        print(f"{_MARKS[result.state]:<7}{result.name:<{width}}  {plain(result.what)}")
        for line in result.more:
            print(f"{'':<7}{'':<{width}}  {plain(line)}")
        if result.hint and not result.more:
            print(f"{'':<7}{'':<{width}}  -> {plain(result.hint)}")
    print(f"\n{len(broken)} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0
