"""What diffusers' tests of models say of this network and of diffusers' Wan: MULTITALK_MIXINS=both nox -s diffusers.

`python tests/support/mixin_counts.py FOLDER TESTS` reads pytest's JUnit files ours*.xml and wan*.xml in FOLDER. It
prints as JSON how many tests of each group passed, failed and were skipped, and which tests only one of both fails.
TESTS says which tests they are, for example the commit of the checkout. Ends with 1 if only ours fails one.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

KINDS = ("ours", "wan")
OUTCOMES = ("passed", "failed", "skipped")
PACKAGES = ("torch", "diffusers", "peft", "accelerate", "torchao", "optimum-quanto")


def outcomes(folder: Path, kind: str) -> dict[str, str]:
    """Return the outcome of every test of one network, by its name; a later file replaces an earlier one's."""
    found = {}
    for path in sorted(folder.glob(f"{kind}*.xml")):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            told = {child.tag for child in case}
            outcome = "failed" if told & {"failure", "error"} else "skipped" if "skipped" in told else "passed"
            found[f"{case.attrib['classname'].rpartition('.')[2].removeprefix('Test')}.{case.attrib['name']}"] = outcome
    return found


def report(folder: Path, tests: str) -> dict[str, Any]:
    """Return both networks' counts by group, and where they differ. Raises ValueError if they ran different tests."""
    ours, wan = (outcomes(folder, kind) for kind in KINDS)
    if not ours or ours.keys() != wan.keys():
        raise ValueError(f"not the same tests of both: {sorted(ours.keys() ^ wan.keys()) or 'none'}")
    groups: dict[str, Any] = {}
    for kind, found in zip(KINDS, (ours, wan), strict=True):
        for name, outcome in found.items():
            counts = groups.setdefault(name.partition(".")[0], {}).setdefault(kind, dict.fromkeys(OUTCOMES, 0))
            counts[outcome] += 1
    failed = [{name for name, outcome in found.items() if outcome == "failed"} for found in (ours, wan)]
    return {
        "date": date.today().isoformat(),
        "tests": tests,
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "total": {
            kind: {outcome: sum(group[kind][outcome] for group in groups.values()) for outcome in OUTCOMES}
            for kind in KINDS
        },
        "groups": groups,
        "only_ours_fails": sorted(failed[0] - failed[1]),
        "only_wan_fails": sorted(failed[1] - failed[0]),
        "both_fail": sorted(failed[0] & failed[1]),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    made = report(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps(made, indent=1))
    sys.exit(1 if made["only_ours_fails"] else 0)
