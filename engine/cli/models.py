"""`multitalk models …` and `scripts/download_models.py`: words -> work, and what a person or a program reads of it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from engine.cli.base import BaseParser
from engine.errors import ConfigError, plain
from engine.hub.check import Finding, verify
from engine.hub.manifest import Manifest, Preset, read_manifest
from engine.hub.offers import ROOT, models_path
from engine.hub.progress import say
from engine.hub.prune import State, removable, remove, states
from engine.hub.pull import Options, pull
from engine.hub.record import records
from engine.text.amounts import amount

ABOUT = {
    "pull": "download a preset, or go on with it; what is complete is left alone",
    "verify": "read what was downloaded and name files that are missing, damaged, swapped or not ours",
    "list": "the presets, what they take on disk and which are there",
    "prune": "remove what no preset in use needs",
}


def run(words: Sequence[str], prog: str) -> int:
    """Do one of `pull`, `verify`, `list` and `prune`; return 0, or 1 where `verify` finds something wrong.

    Raises EngineError.
    """
    if not words or words[0] not in ABOUT:
        table = "\n".join(f"  {name:<7} {about}" for name, about in ABOUT.items())
        if words and words[0] in ("-h", "--help"):
            print(f"usage: {prog} COMMAND [flags]\n\n{table}\n\n'{prog} COMMAND --help' tells more")
            return 0
        told = f"no command named {words[0]!r}" if words else "no command"
        raise ConfigError(told, field="command line", hint=f"{prog} {'|'.join(ABOUT)}")
    return {"pull": download, "verify": _verify, "list": _list, "prune": _prune}[words[0]](
        words[1:], f"{prog} {words[0]}"
    )


def _parser(prog: str, about: str) -> BaseParser:
    parser = BaseParser(prog=prog, description=about, allow_abbrev=False)
    parser.add_argument(
        "--model-path",
        type=Path,
        default=models_path(),
        metavar="FOLDER",
        help=f"folder of all models ($MODEL_PATH, else {ROOT})",
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        metavar="FILE",
        help="your own presets, in the format of engine/hub/manifest.yaml",
    )
    return parser


def pull_parser(prog: str) -> BaseParser:
    """Return what reads the words of `pull`."""
    parser = _parser(prog, "Download a preset's files, verify them and mark the preset complete.")
    parser.add_argument("--preset", metavar="NAME", help="a preset of `multitalk models list` (the default one)")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="PART", help="add a part")
    parser.add_argument("--without", action="append", default=[], metavar="PART", help="leave a part out")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="parallel downloads (4)")
    parser.add_argument("--repair", action="store_true", help="replace files that were changed or block a needed name")
    parser.add_argument("--quiet", action="store_true", help="only print the folder")
    return parser


def download(words: Sequence[str], prog: str) -> int:
    """Do `pull`, which is all that the script does. Raises EngineError."""
    given = pull_parser(prog).parse_args(list(words))
    manifest = read_manifest(given.manifest)
    if given.workers < 1:
        raise ConfigError(f"{given.workers} workers", field="--workers", hint="give 1 or more")
    preset = manifest.preset(given.preset or manifest.default, extra=given.extra, without=given.without)
    options = Options(workers=given.workers, repair=given.repair)
    if not given.quiet:
        options.out, options.say = sys.stderr, _say
        rough = "" if preset.exact else "about "
        _say(f"{preset.name}: {rough}{amount(preset.size)} on disk when complete; nothing lies there twice meanwhile")
    folder = pull(preset, given.model_path, options)
    if not given.quiet:
        _say(f"complete; use it with: {preset.use}")
    print(folder)
    return 0


def _verify(words: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "Read every byte of what was downloaded; exit with 1 if anything but a stranger is found.")
    parser.add_argument(
        "--preset", action="append", metavar="NAME", help="preset to check (all that are marked complete)"
    )
    parser.add_argument("--quick", action="store_true", help="only compare sizes and times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(list(words))
    manifest = read_manifest(given.manifest)
    known = records(given.model_path)
    names = given.preset or [name for record in known for name in record.complete if name in manifest.names()]
    presets = [manifest.preset(name) for name in names]
    folders = dict.fromkeys([*(given.model_path / preset.folder for preset in presets), *(r.folder for r in known)])
    if not folders:
        raise ConfigError(f"nothing was downloaded to {given.model_path}", field="--model-path", hint=f"{prog} --help")
    found: dict[str, list[Finding]] = {}
    for folder in folders:
        mine = [_as_pulled(manifest, folder, preset.name) for preset in presets if preset.folder == folder.name]
        found[str(folder)] = verify(mine, folder, quick=given.quick, say=(lambda _: None) if given.json else _say)
    wrong = sum(finding.kind != "foreign" for findings in found.values() for finding in findings)
    if given.json:
        print(json.dumps({"folders": {folder: list(map(asdict, findings)) for folder, findings in found.items()}}))
    else:
        for folder, findings in found.items():
            for finding in findings:
                print(plain(f"{finding.kind:<10} {folder}/{finding.file}: {finding.detail}"))
        print(f"{wrong} wrong" if wrong else f"all is well in {len(found)} folder{'s' * (len(found) != 1)}")
        if wrong:
            print("get them again with: multitalk models pull --repair --preset NAME")
    return 1 if wrong else 0


def _as_pulled(manifest: Manifest, folder: Path, name: str) -> Preset:
    """Return a preset without the parts that it was pulled without."""
    preset = manifest.preset(name)
    places = next((record.complete.get(name) for record in records(folder.parent) if record.folder == folder), None)
    if places is None:
        return preset
    return replace(preset, files=tuple(file for file in preset.files if file.to in places))


def _list(words: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "List the presets, what each takes on disk, and which are there.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(list(words))
    manifest = read_manifest(given.manifest)
    found = states(manifest, given.model_path)
    if given.json:
        print(
            json.dumps(
                {"path": str(given.model_path), "default": manifest.default, "presets": list(map(asdict, found))}
            )
        )
        return 0
    for state in found:
        print(_line(state, default=state.preset == manifest.default))
    return 0


def _line(state: State, *, default: bool) -> str:
    size = f"{'' if state.exact else 'about '}{amount(state.size)}"
    there = {"complete": size, "partial": f"{amount(state.there)} of {size}", "absent": size}[state.state]
    name = f"{state.preset} (default)" if default else state.preset
    lines = [f"{name}: {state.state}, {there}", state.about, state.use, f"licences: {', '.join(state.licences)}"]
    return "\n    ".join(lines)


def _prune(words: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "Remove downloaded files that no preset in use needs, and what is left of unfinished ones.")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME", help="preset to keep (all that are marked complete)"
    )
    parser.add_argument("--foreign", action="store_true", help="also remove files that `pull` did not download")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    given = parser.parse_args(list(words))
    manifest = read_manifest(given.manifest)
    found = removable(manifest, given.model_path, given.keep, foreign=given.foreign)
    for item in found:
        print(plain(f"{item.why:<10} {amount(item.size):>9}  {item.path}"))
    if not found:
        print("nothing to remove")
        return 0
    if not given.yes:
        if not sys.stdin.isatty():
            raise ConfigError("nobody is here to ask", field="--yes", hint="give --yes to remove these files")
        if input(f"remove these {len(found)} files? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return 0
    print(f"removed {amount(remove(found, given.model_path))}")
    return 0


def _say(line: str) -> None:
    say(plain(line))
