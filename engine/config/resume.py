"""Config of the states of unfinished videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.config.ranges import within


@dataclass
class ResumeConfig:
    """States of unfinished videos: an interrupted job continues with its next window (docs/resume.md)."""

    #: Folder of the states; "volume": the folder "resume" in `volume`, and no states if there is no volume; "auto":
    #: that one, else ~/.cache/multitalk/resume; null: no states.
    folder: str | None = None
    #: The volume of the weights.
    volume: str = "${oc.env:MODEL_PATH,/runpod-volume/models}"
    #: Keep the states of all windows after the video was delivered, for `multitalk retake`.
    keep: bool = False
    #: Days after which a state is removed.
    days: float = field(default=7.0, metadata=within(0, 36_500))
    #: Maximum GiB of all states in the folder; the oldest ones are removed first.
    gib: float = field(default=50.0, metadata=within(0, 1_000_000))
    #: Seconds without progress of the folder's disk after which the job continues without states.
    seconds: float = field(default=30.0, metadata=within(0.01, 3600))
    #: `multitalk retake`: the first window, from 1, that is made again, with all after it; 0: none.
    retake: int = field(default=0, metadata=within(0, 90_000))
    #: `multitalk retake`: seed of these windows; null: drawn from the request's own generator.
    retake_seed: int | None = field(default=None, metadata=within(0, 2**63 - 1))


def with_states(overrides: Iterable[str], folder: str) -> list[str]:
    """Return `overrides` with `folder` as that of the states, unless they name one."""
    given = list(overrides)
    named = any(override.lstrip("+~").startswith(("resume.folder=", "resume=")) for override in given)
    return given if named else [f"resume.folder={folder}", *given]


def kept_nowhere(resume: ResumeConfig, why: str) -> list[str]:
    """Return a warning if `resume.keep` asks to keep states and there is no folder for them, for the reason `why`."""
    if not resume.keep:
        return []
    return [
        f"resume.keep=true keeps nothing, because resume.folder {why}: set it to a folder (--resume: the usual one)"
    ]
