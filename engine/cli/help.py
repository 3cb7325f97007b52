"""The text of `multitalk --help`."""

from __future__ import annotations

from engine.cli.catalog import groups
from engine.cli.common import COMMON
from engine.cli.formatting import fit_help, width
from engine.cli.parser import REQUEST
from engine.plugin.manager import loaded
from engine.text.terminal import table

COMMANDS = {
    "examples": "[FOLDER]: copy the example pictures, voices and job files that the documents use",
    "plan": "show what generate would do: sizes, windows, memory, time and cost on GPUs (generate --dry-run)",
    "plugins": "list every component and preset by group, with its package (--json); new NAME: write one (--kind)",
    "config": "print the composed config and the origin of each value; KEY: explain a key (--json, docs/config.md)",
    "show": "FILE.mp4: print the settings that are stored in a video (--json)",
    "retake": "FILE.mp4 --window N --image ... --audio ...: make a window and those after it again, from kept states",
    "again": "FILE.mp4 --image ... --audio ...: make a video again from its stored settings",
    "completion": "bash, zsh or fish: print what makes the shell complete commands, flags, groups, keys and files",
    "compare": "DIR: write a page with the videos of a sweep side by side and their measurements (docs/sweeps.md)",
    "models": "pull, verify, list, prune: manage the published weights on this machine or volume (docs/models.md)",
    "doctor": "check this machine for a config; report problems and how to fix them (--json)",
    "rehearse": "run the real code on a simulated card: memory, copies and waits without a GPU (docs/rehearsal.md)",
    "bench": "transformer, memory, load, plan, device, ...: measure a part of the engine or this device; prints JSON",
}

_ABOUT = """\
multitalk: a picture and one or two voices in, a talking video out.

usage: multitalk COMMAND [flags] group=name key=value ...
"""

_EXAMPLES = """\
examples:
  multitalk generate anna.jpg anna.wav -p "a woman speaks"
  multitalk generate two.jpg left.wav right.wav --audio-type add \\
      -p "two people talk" -o films/talk.mp4 sampler=turbo
  multitalk plan -i two.jpg -a silence -a right.wav -p "..." \\
      model=multitalk resolution=720p
  multitalk generate anna.jpg anna.wav -p "..." \\
      -m sampler=standard,turbo request.seed=1,2

Arguments with '=' are overrides of the config, in Hydra's syntax:
  group=name  selects one of the names below (sampler=turbo)
  key=value   sets one value (sampler.steps=20, sink.folder=films)
'multitalk COMMAND --help' explains a command. Errors are one line with exit status 2.
"""


def manual() -> str:
    """Return what the command does, its commands, flags, examples and the groups to choose from."""
    entrypoints = loaded().entrypoints
    about = {name: (entrypoints.config(name).__doc__ or "").partition("\n")[0] for name in entrypoints.names()}
    flags = {f"{flag.names.replace(' ', ', ')} {flag.metavar}": flag.help for flag in REQUEST}
    flags["-o, --output FILE"] = (
        "folder and name of the video; existing files are only overwritten with sink.overwrite=true"
    )
    flags["--json, --dry-run, --preview PNG, --open, -q, -m"] = "see multitalk generate --help"
    settings = {name: str(arguments["help"]) for names, arguments in COMMON for name in [names.replace(" ", ", ")]}
    parts = [
        _ABOUT,
        "commands:\n" + _table(about | COMMANDS),
        "flags of generate:\n" + _table(flags),
        "flags of all commands:\n" + _table(settings),
        _EXAMPLES,
        "groups:\n" + _table({group: ", ".join(names) for group, names in groups().items()}),
        "--version prints the version, --help this text",
    ]
    return fit_help("\n".join(parts)).rstrip("\n")


def _table(rows: dict[str, str]) -> str:
    return "\n".join(table(rows.items(), width())) + "\n"
