"""`multitalk doctor`: one screen that says what is wrong here and what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from engine.cli.parser import Parser

_MARKS = {"ok": "ok", "note": "note", "broken": "BROKEN"}


def doctor(words: Sequence[str]) -> int:
    """Examine this machine for the config that `words` override; return 1 where something is broken.

    Raises ConfigError for overrides that cannot be composed.
    """
    parser = Parser(
        prog="multitalk doctor",
        usage="multitalk doctor [--json] [group=name key=value ...]",
        description="Look at Python, torch, driver, memory, attention, weights, disks, sink and RunPod's variables.",
    )
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, rest = parser.read(words)
    from engine.doctor.checks import examine
    from engine.errors import plain

    found = examine(rest)
    broken = [finding for finding in found if finding.state == "broken"]
    if values.json:
        kept = [{key: value for key, value in asdict(finding).items() if key != "more"} for finding in found]
        print(json.dumps({"healthy": not broken, "findings": kept}))
        return 1 if broken else 0
    width = max(len(finding.name) for finding in found)
    for finding in found:
        print(f"{_MARKS[finding.state]:<7}{finding.name:<{width}}  {plain(finding.what)}")
        for line in finding.more:
            print(f"{'':<7}{'':<{width}}  {plain(line)}")
        if finding.hint and not finding.more:
            print(f"{'':<7}{'':<{width}}  -> {plain(finding.hint)}")
    print(f"\n{len(broken)} broken" if broken else "\nnothing is broken")
    return 1 if broken else 0
