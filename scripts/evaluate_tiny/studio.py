"""What all kinds of a run of `evaluate_tiny talk` share: a service, clips, progress and raw figures."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from engine import EngineService
from engine.assembly.escape import override as quoted
from engine.errors import RequestError
from engine.evaluation.frames import read_video
from engine.evaluation.metrics import Pictures, Row
from engine.files.atomic import write
from scripts.evaluate_tiny.cases import FPS, Case, find_cases
from scripts.evaluate_tiny.films import GeneratedVideo, generate_video, liveliness, mouth_rows
from scripts.train_tiny import clips

#: Frames of a clip: one window of the embedded model.
FRAMES = 81
#: Number of seeds reserved for a group of clips.
_SEEDS = 100_000
_GROUPS = ("one", "two", "silent", "fps", "long", "real", "vae", "detector", "speed", "long_voice_1", "long_voice_2")
#: Number of cases between two lines of progress.
_LINE = 10


@dataclass(frozen=True)
class Group:
    """Clips with their own voices, and the measurements of each."""

    cases: list[Case]
    rows_by_clip: list[tuple[Row, ...]]
    #: How much heads move in each video, and in the drawn clip.
    moves: list[float]
    drawn: list[float]
    forwards: int

    @property
    def rows(self) -> list[Row]:
        """Measurements of all mouths."""
        return [row for rows in self.rows_by_clip for row in rows]


@dataclass
class Studio:
    """Generates videos of cases with one service, started with `overrides`; `folder` is temporary."""

    service: EngineService
    folder: Path
    overrides: Sequence[str]
    clips: int
    long: int
    seed: int
    sizes: Sequence[tuple[int, int]]
    voices: Path | None = None
    #: Seconds of a long voice, and the folder in which its videos are kept, if any.
    long_voice: int = 60
    keep: Path | None = None
    #: Prefix of progress lines.
    name: str = "evaluate_tiny"
    #: Raw figures by kind, and the file in which they are kept, if any.
    details_file: Path | None = None
    details: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    #: Seconds after which no further long clip begins, if any; and when the studio was opened.
    budget: float | None = None
    began: float = field(default_factory=perf_counter)
    #: What the figures depend on.
    settings: Mapping[str, Any] = field(default_factory=dict)

    def cases(self, group: str, count: int, **choices: Any) -> list[Case]:
        """Return the first `count` cases of `group` that fit `choices`; see `find_cases`."""
        first = self.seed + _SEEDS * _GROUPS.index(group)
        self.say(f"{group}: drawing, {count} in all")
        settings: dict[str, Any] = {"sizes": self.sizes, "frames": FRAMES} | choices
        return find_cases(first, count, self.folder / group, **settings)

    @cached_property
    def one_cases(self) -> list[Case]:
        """One person each, with all skin classes equally frequent."""
        return self.cases("one", self.clips, people=1, even=True)

    @cached_property
    def two_cases(self) -> list[Case]:
        """Two people each, who both speak all the time."""
        return self.cases("two", self.clips, people=2)

    def again(self, service: EngineService) -> Studio:
        """Return a studio that uses the same `one_cases` and `two_cases` with another service."""
        other = replace(self, service=service, details={})
        other.one_cases, other.two_cases = self.one_cases, self.two_cases
        return other

    @cached_property
    def one(self) -> Group:
        """The measurements of `one_cases`."""
        return self._standard("one", self.one_cases)

    @cached_property
    def two(self) -> Group:
        """The measurements of `two_cases`, with people in the default halves."""
        return self._standard("two", self.two_cases)

    def drawn(self, case: Case) -> Pictures:
        """Draw a case's clip again, without the losses of an MP4."""
        frames: Pictures = clips.make_clip(
            case.seed, frames=case.frames, fps=FPS, size=case.size, people=len(case.skins), split="held_out"
        ).frames
        return frames

    def generate(self, case: Case, **choices: Any) -> GeneratedVideo:
        """See `films.generate_video`."""
        return generate_video(self.service, case, **choices)

    def each(self, kind: str, cases: Sequence[Case], *, line: int = _LINE) -> Iterator[Case]:
        """Yield the cases and print progress to stderr after every `line` of them."""
        began = perf_counter()
        for number, case in enumerate(cases, 1):
            yield case
            if number % line == 0 or number == len(cases):
                self.say(f"{kind}: {number} of {len(cases)} clips, {perf_counter() - began:.0f} s")

    def say(self, line: str) -> None:
        """Print a line of progress."""
        print(f"{self.name}: {line}", file=sys.stderr, flush=True)

    def is_over(self) -> bool:
        """Say whether the time for long clips is over."""
        return self.budget is not None and perf_counter() - self.began > self.budget

    def take_up(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Keep figures together with the `settings` that they depend on; with `resume`, begin with those in the file.

        Raises RequestError if the file's figures are of other settings, or if it is damaged.
        """
        self.settings = settings
        if not resume or self.details_file is None or not self.details_file.exists():
            return
        field_name, hint = "--details", "name another file, or remove this one"
        try:
            kept = json.loads(self.details_file.read_text("utf-8"))
            of, details = kept.pop("settings"), kept
        except (ValueError, KeyError) as error:
            raise RequestError(f"{self.details_file} holds no figures", field=field_name, hint=hint) from error
        if of != dict(settings):
            other = ", ".join(sorted(name for name in {*of, *settings} if of.get(name) != settings.get(name)))
            raise RequestError(f"{self.details_file} is of another run ({other})", field=field_name, hint=hint)
        self.details.update(details)

    def keep_details(self) -> None:
        """Write the raw figures measured so far; a run that is killed meanwhile leaves those of before."""
        if self.details_file is not None:
            write(self.details_file, json.dumps({"settings": dict(self.settings), **self.details}).encode())

    def note(self, kind: str, rows: Iterable[Row], **more: Any) -> None:
        """Add raw figures."""
        self.details.setdefault(kind, []).extend(asdict(row) | more for row in rows)

    def _standard(self, kind: str, cases: list[Case]) -> Group:
        rows, moves, drawn, forwards = [], [], [], 0
        for case in self.each(kind, cases):
            video = self.generate(case)
            rows.append(mouth_rows(video.frames, case, fps=FPS))
            moves.append(liveliness(video.frames, case))
            drawn.append(liveliness(read_video(case.rendered), case))
            forwards += video.plan.forwards
            self.note(kind, rows[-1], moves=moves[-1], drawn=drawn[-1])
        return Group(cases, rows, moves, drawn, forwards)


@contextmanager
def opened(overrides: Sequence[str], **settings: Any) -> Iterator[Studio]:
    """Open a studio with a service with these `overrides`, which writes its videos to a temporary folder.

    `settings` are the other fields of Studio. Raises EngineError.
    """
    with tempfile.TemporaryDirectory(prefix="multitalk-bench-") as name:
        folder = Path(name)
        booted = (*overrides, "sink=disk", quoted("sink.folder", str(folder / "films")))
        service = EngineService(booted)
        try:
            yield Studio(service, folder, overrides=booted, **settings)
        finally:
            service.close()
