"""`multitalk models` and `scripts/download_models.py`: parses the arguments, does the work and prints the result."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from engine.cli.base import BaseParser
from engine.errors import ConfigError, plain
from engine.hub.check import Finding, verify
from engine.hub.licences import licences
from engine.hub.manifest import Manifest, Preset, read_manifest
from engine.hub.offers import ROOT, models_path
from engine.hub.progress import say
from engine.hub.prune import State, removable, remove, states
from engine.hub.pull import Options, pull
from engine.hub.record import COMPLETE, Record, records
from engine.text.amounts import amount
from engine.text.terminal import columns, hanging, table

ABOUT = {
    "pull": "download a preset, or resume its download; complete files are kept",
    "verify": "read the downloaded files and list those that are missing, damaged, swapped or foreign",
    "list": "the presets, their size on disk and their state",
    "prune": "remove files that no preset in use needs",
}


def run(arguments: Sequence[str], prog: str) -> int:
    """Run one of `pull`, `verify`, `list` and `prune`; return 0, or 1 if `verify` finds a problem.

    Raises EngineError.
    """
    if not arguments or arguments[0] not in ABOUT:
        commands = "\n".join(table(ABOUT.items(), columns()))
        if arguments and arguments[0] in ("-h", "--help"):
            print(f"usage: {prog} COMMAND [flags]\n\n{commands}\n\n'{prog} COMMAND --help' explains one")
            return 0
        what = f"no command named {arguments[0]!r}" if arguments else "no command"
        raise ConfigError(what, field="command line", hint=f"{prog} {'|'.join(ABOUT)}")
    return {"pull": download, "verify": _verify, "list": _list, "prune": _prune}[arguments[0]](
        arguments[1:], f"{prog} {arguments[0]}"
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
    """Return the parser of the arguments of `pull`."""
    parser = _parser(prog, "Download a preset's files, verify them and mark the preset complete.")
    parser.add_argument("--preset", metavar="NAME", help="a preset of `multitalk models list` (the default one)")
    parser.add_argument("--with", dest="extra", action="append", default=[], metavar="PART", help="add a part")
    parser.add_argument("--without", action="append", default=[], metavar="PART", help="leave a part out")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="parallel downloads (4)")
    parser.add_argument("--repair", action="store_true", help="replace files that were changed or block a needed name")
    parser.add_argument("-q", "--quiet", action="store_true", help="only print the folder")
    return parser


def download(arguments: Sequence[str], prog: str) -> int:
    """Run `pull`; the script has no other command. Raises EngineError."""
    options = pull_parser(prog).parse_args(list(arguments))
    manifest = read_manifest(options.manifest)
    if options.workers < 1:
        raise ConfigError(f"{options.workers} workers", field="--workers", hint="give 1 or more")
    preset = manifest.preset(options.preset or manifest.default, extra=options.extra, without=options.without)
    pull_options = Options(workers=options.workers, repair=options.repair)
    if not options.quiet:
        pull_options.out, pull_options.say = sys.stderr, _say
        rough = "" if preset.exact else "about "
        _say(f"{preset.name}: {rough}{amount(preset.size)} on disk when complete; no file is stored twice meanwhile")
    folder = pull(preset, options.model_path, pull_options)
    if not options.quiet:
        _say(f"complete; use it with: {preset.use}")
    print(folder)
    return 0


def _verify(arguments: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "Read all downloaded files; exit with 1 if a file is missing, damaged or swapped.")
    parser.add_argument(
        "--preset", action="append", metavar="NAME", help="preset to check (all that are marked complete)"
    )
    parser.add_argument("--quick", action="store_true", help="only compare sizes and times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(arguments))
    manifest = read_manifest(options.manifest)
    pulled = records(options.model_path)
    names = options.preset or [name for record in pulled for name in record.complete if name in manifest.names()]
    presets = [manifest.preset(name) for name in names]
    folders = dict.fromkeys([*(options.model_path / preset.folder for preset in presets), *(r.folder for r in pulled)])
    if not folders:
        raise ConfigError(
            f"nothing was downloaded to {options.model_path}",
            field="--model-path",
            hint=f"name the folder that pull was given, or: {prog.removesuffix('verify')}pull",
        )
    findings_by_folder: dict[str, list[Finding]] = {}
    for folder in folders:
        mine = [_as_pulled(manifest, folder, preset.name) for preset in presets if preset.folder == folder.name]
        findings_by_folder[str(folder)] = verify(
            mine, folder, quick=options.quick, say=(lambda _: None) if options.json else _say
        )
        if not findings_by_folder[str(folder)] and not Record(folder).complete:
            # Interrupted, or a problem was found before: presets with one are not marked complete.
            findings_by_folder[str(folder)] = [Finding(COMPLETE, "missing", "no preset in this folder is complete")]
    wrong = sum(finding.kind != "foreign" for findings in findings_by_folder.values() for finding in findings)
    if options.json:
        print(
            json.dumps(
                {"folders": {folder: list(map(asdict, findings)) for folder, findings in findings_by_folder.items()}}
            )
        )
    else:
        for folder, findings in findings_by_folder.items():
            for finding in findings:
                _print(f"{finding.kind:<10} ", f"{folder}/{finding.file}: {finding.detail}")
        many = f"{len(findings_by_folder)} folder{'s' * (len(findings_by_folder) != 1)}"
        _print("", f"{wrong} wrong" if wrong else f"all is well in {many}: {', '.join(names)}")
        if wrong:
            _print("", "get them again with: multitalk models pull --repair --preset NAME")
    return 1 if wrong else 0


def _as_pulled(manifest: Manifest, folder: Path, name: str) -> Preset:
    """Return a preset without the parts that it was pulled without."""
    preset = manifest.preset(name)
    places = next((record.complete.get(name) for record in records(folder.parent) if record.folder == folder), None)
    if places is None:
        return preset
    return replace(preset, files=tuple(file for file in preset.files if file.to in places))


def _list(arguments: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "List the presets, what each takes on disk, and which are there.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(list(arguments))
    manifest = read_manifest(options.manifest)
    presets, rows = states(manifest, options.model_path), licences(manifest)
    if options.json:
        print(
            json.dumps(
                {
                    "path": str(options.model_path),
                    "default": manifest.default,
                    "presets": list(map(asdict, presets)),
                    "licences": list(map(asdict, rows)),
                }
            )
        )
        return 0
    for state in presets:
        first, *more = _lines(state, default=state.preset == manifest.default)
        _print("", first)
        for line in more:
            _print("    ", line)
    print("\nlicences, and whether a paid service may run the weights:")
    for one in rows:
        named = ", ".join(f"model={model}" for model in one.models) or "no preset"
        _print("", f"{one.weights}: {one.licence}; paid service: {one.commercial}")
        _print("    ", f"{named}; read in: {one.source}")
    return 0


def _print(head: str, text: str) -> None:
    print("\n".join(hanging(plain(head), plain(text), columns())))


def _lines(state: State, *, default: bool) -> list[str]:
    size = f"{'' if state.exact else 'about '}{amount(state.size)}"
    there = {"complete": size, "partial": f"{amount(state.there)} of {size}", "absent": size}[state.state]
    name = f"{state.preset} (default)" if default else state.preset
    return [f"{name}: {state.state}, {there}", state.about, state.use, f"licences: {', '.join(state.licences)}"]


def _prune(arguments: Sequence[str], prog: str) -> int:
    parser = _parser(prog, "Remove downloaded files that no preset in use needs, and parts of unfinished downloads.")
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NAME", help="preset to keep (all that are marked complete)"
    )
    parser.add_argument("--foreign", action="store_true", help="also remove files that `pull` did not download")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(list(arguments))
    manifest = read_manifest(options.manifest)
    items = removable(manifest, options.model_path, options.keep, foreign=options.foreign)
    for item in items:
        _print(f"{item.why:<10} {amount(item.size):>9}  ", str(item.path))
    if not items:
        print("nothing to remove")
        return 0
    if not options.yes:
        if not sys.stdin.isatty():
            raise ConfigError("stdin is not a terminal", field="--yes", hint="give --yes to remove these files")
        if input(f"remove these {len(items)} files? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing removed")
            return 0
    print(f"removed {amount(remove(items, options.model_path))}")
    return 0


def _say(line: str) -> None:
    say(plain(line))
