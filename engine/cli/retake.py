"""`multitalk retake`: makes a window of a video again, and all windows after it, from kept states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.assembly.escape import override
from engine.cli.parser import Parser
from engine.cli.provenance import add_flags, repeat
from engine.cli.run import launch
from engine.config.resume import with_states
from engine.errors import RequestError


def retake(arguments: Sequence[str]) -> int:
    """Make windows of a video again. `arguments`: its file, the window, its media, flags and overrides."""
    parser = Parser(
        prog="multitalk retake",
        usage="multitalk retake FILE.mp4 --window N [--seed S] --image FILE --audio FILE ... [flags] key=value ...",
        description="Make a window of a video again with another seed, and all windows after it.\n"
        "The windows before come from states: make the video with resume.keep=true and --resume.",
    )
    parser.flag("--window", dest="resume.retake", metavar="N", help="the first window that is made again, from 1")
    parser.flag("--seed", dest="resume.retake_seed", metavar="S", help="its seed (drawn from the request's own)")
    add_flags(parser)
    values, rest = parser.read(arguments)
    window, seed = getattr(values, "resume.retake"), getattr(values, "resume.retake_seed")
    if window is None or not (window.isascii() and window.isdigit() and int(window)):
        raise RequestError(
            "no window" if window is None else f"{window!r} is no window", field="--window", hint="1 to N"
        )
    if seed is not None and not (seed.isascii() and seed.isdigit() and int(seed) < 2**63):
        raise RequestError(f"{seed!r} is not a seed", field="--seed", hint="give a whole number from 0 to 2**63 - 1")
    overrides = with_states(repeat(parser, arguments, _check), "auto")
    if values.output is None and not any(word.startswith(("sink", "request.filename=")) for word in rest):
        file = Path(rest[0])
        name = f"{file.stem}-window-{int(window)}" + (f"-seed-{seed}" if seed is not None else "")
        overrides += [override("sink.folder", str(file.parent)), override("request.filename", f"{name}.mp4")]
    return launch(overrides)


def _check(provenance: Mapping[str, Any]) -> None:
    if "made_again" in provenance:
        raise RequestError(
            "windows of this video were made again already",
            field="FILE.mp4",
            hint="give the video that it was made from",
        )
