"""The text of `multitalk --help`."""

from __future__ import annotations

import textwrap

from engine.cli.catalog import groups
from engine.cli.parser import REQUEST
from engine.plugin.manager import loaded

COMMANDS = {
    "examples": "[FOLDER]: copy the example pictures, voices and job files that the documents use",
    "plan": "show what generate would do: sizes, windows, memory, time and cost on GPUs (generate --dry-run)",
    "plugins": "list every component and preset by group, with its package (--json); new NAME: write one (--kind)",
    "config": "print the composed config and the origin of each value; KEY: explain a key (--json, docs/config.md)",
    "show": "FILE.mp4: print the settings that are stored in a video (--json)",
    "retake": "FILE.mp4 --window N --image ... --audio ...: make a window and those after it again, from kept states",
    "again": "FILE.mp4 --image ... --audio ...: make a video again from its stored settings",
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
  multitalk generate --image anna.jpg --audio anna.wav --prompt "a woman speaks"
  multitalk generate --image two.jpg --audio left.wav --audio right.wav --audio-type add \\
      --prompt "two people talk" --output films/talk.mp4 sampler=turbo
  multitalk plan --image two.jpg --audio silence --audio right.wav --prompt "..." model=multitalk resolution=720p
  multitalk generate --image anna.jpg --audio anna.wav --prompt "..." -m sampler=standard,turbo request.seed=1,2

Arguments with '=' are overrides of the config, in Hydra's syntax: group=name selects one of the names below,
key=value sets one value (sampler.steps=20, guidance.text_scale=3, sink.folder=films).
'multitalk COMMAND --help' explains a command. Errors are one line with exit status 2.
"""


def manual() -> str:
    """Return what the command does, its commands, flags, examples and the groups to choose from."""
    entrypoints = loaded().entrypoints
    about = {name: (entrypoints.config(name).__doc__ or "").partition("\n")[0] for name in entrypoints.names()}
    flags = {f"{flag.name} {flag.metavar}": flag.help for flag in REQUEST}
    flags["--output FILE"] = (
        "folder and name of the video; existing files are only overwritten with sink.overwrite=true"
    )
    flags["--json, --dry-run, --preview PNG, --quiet, -m"] = "see multitalk generate --help"
    parts = [
        _ABOUT,
        "commands:\n" + _table(about | COMMANDS),
        "flags of generate:\n" + _table(flags),
        _EXAMPLES,
        "groups:\n" + _table({group: ", ".join(names) for group, names in groups().items()}),
        "--version prints the version, --help this text",
    ]
    return "\n".join(parts)


def _table(rows: dict[str, str]) -> str:
    width = min(26, max(len(name) for name in rows))
    lines = []
    for name, text in rows.items():
        head = f"  {name:<{width}}  "
        body = textwrap.wrap(text, 110 - width, break_on_hyphens=False) or [""]
        if len(head) > width + 4:
            lines.append(head.rstrip())
            head = " " * (width + 4)
        lines += [head + body[0], *(" " * (width + 4) + line for line in body[1:])]
    return "\n".join(lines) + "\n"
