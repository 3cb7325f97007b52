"""`multitalk doctor`: prints the problems of this machine and what to do about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from engine.cli.parser import Parser
from engine.cli.settings import settings_for
from engine.errors import EngineError, plain
from engine.text.terminal import columns, hanging, styled

_STYLES = {"ok": "green", "note": "yellow", "broken": "red"}
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

    settings = settings_for("generate", rest)
    settings.show(rest)
    try:
        results = examine([*settings.overrides, *rest])
    except EngineError as error:
        raise settings.located(error, rest) from error.__cause__
    broken = [result for result in results if result.state == "broken"]
    if values.json:
        fields = [{key: value for key, value in asdict(result).items() if key != "more"} for result in results]
        print(json.dumps({"healthy": not broken, "findings": fields}))
        return 1 if broken else 0
    width = max(len(result.name) for result in results)
    limit = columns()
    for result in results:
        head = f"{_MARKS[result.state]:<7}{result.name:<{width}}  "
        below = " " * len(head)
        lines = hanging(head, plain(result.what), limit, style=_STYLES[result.state])
        for line in result.more:
            lines += hanging(below, plain(line), limit)
        if result.hint and not result.more:
            lines += hanging(f"{below}-> ", plain(result.hint), limit)
        print("\n".join(lines))
    if broken:
        print(styled(f"\n{len(broken)} broken", "red"))
    else:
        print("\nnothing is broken")
    return 1 if broken else 0
