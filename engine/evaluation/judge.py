"""Judge a video window by window while it is made: seams, sharpness, faces, colours, still and blank frames, lips.

Only small reference values stay from window to window: of the picture, of the first window, and one frame. So memory
does not grow, and a window that is made again can be judged again. docs/reports.md explains each figure, its limits
and how it was proven.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.data import Limit, Plan, Report, Window, WindowReport
from engine.evaluation.likeness import LUMA, Face, Pictures, fineness
from engine.evaluation.metrics import LEAD, SPEAKS_HERE
from engine.evaluation.mouths import Floats, correlation, find_mouths, mouth_openings
from engine.evaluation.voices import LEVEL, SAMPLE_RATE, Voice, loudness, mouth_of

#: Frames of a window whose sharpness and colours are measured, whose faces, and whose mouths, evenly spaced.
_SAMPLED, _FACES, _MOUTHS = 5, 5, 14
#: Least number of new frames of a window in which a mouth can be found, or compared with a voice.
_LEAST = 12
#: Parts of a picture along a side in which changes are measured: a mouth fills one of them.
_PARTS = 8
#: Mean change of a part, in grey levels of 255, up to which it stands still.
_STILL = 0.35
#: The jump at a seam is compared with this quantile of the changes inside, which is at least so many grey levels.
_FAST, _CALM = 0.95, 0.5
#: Contrast of a blank frame in parts of the picture's, and least contrast of a picture that is not blank itself.
_BLANK, _PLAIN = 0.1, 2.0
#: Contrast of fine lines, in grey levels, up to which a picture has none.
_DULL = 1e-3
#: Places from which a face is compared, in widths of the mouth's box aside of it.
_BESIDE = (0.0, 0.08, -0.08)
#: How far a mouth must be open, 0 to 1, for its voice to count as speaking.
_SPEAKS = 0.1
#: Seconds of the voice before and after a window that the curve of its mouth needs.
_AROUND = 0.3
#: Longest side in pixels at which colours are compared.
_COLOUR_SIDE = 160

#: Why a measure has no figure.
FIRST = "the first window of its picture"
NO_FACES = "faces are only compared for drawn people (report.identity of this model is null)"
NO_LIPS = "mouths are only measured for drawn people (report.mouth of this model is null)"
SHORT = f"fewer than {_LEAST} frames"
SILENT = "nobody speaks"
UNHEARD = "nobody has spoken yet, so no mouth shows where a face is"
PLAIN = "the picture is of one colour"
OFF = "the config has no limit for it"

#: Every measure, in the order of a report.
MEASURES = (
    "seam",
    "sharpness",
    "sharpness_kept",
    "identity",
    "identity_grown",
    "colour",
    "colour_drift",
    "still",
    "blank",
    "mouth",
)


@dataclass(frozen=True)
class _Person:
    """A person whose mouth was found in the first window in which it speaks."""

    #: x0, y0, x1, y1 around the mouth, in pixels.
    box: npt.NDArray[np.float64]
    #: Its face in the picture, and the same from places a little beside it; empty: faces are not compared.
    faces: tuple[Face, ...]
    #: Distance of the face from the picture's in that window.
    identity: float | None


@dataclass(frozen=True)
class _Reference:
    """What the windows so far leave to the next ones."""

    #: Of the first window.
    sharpness: float | None
    colours: Floats
    #: By number of the seat.
    people: Mapping[int, _Person]
    #: Of the last one: its last frame, and its fast changes in grey levels.
    last: Pictures
    fast: float


@dataclass(frozen=True)
class Look:
    """One window as it was seen: the result of `Judge.look`, to be passed to `Judge.keep` if it stays in the video."""

    report: WindowReport
    after: _Reference = field(repr=False)


class Judge:
    """Measures the windows of one video in their order."""

    def __init__(
        self,
        pictures: Sequence[Pictures],
        plan: Plan,
        voices: Sequence[Floats],
        limits: Mapping[str, Limit],
        *,
        shows: Callable[[int], int] = lambda _: 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Judge a video of `pictures`, uint8 RGB (H, W, 3) at the video's size.

        `shows` returns the number of a window's picture, by the window's index; each new picture begins anew.
        `voices` are float32 mono 16 kHz, one per speaker of the plan's seats, on the video's time axis. `limits` are
        those of MEASURES; a measure without a limit is not made.
        """
        self._pictures, self._shows, self._number = pictures, shows, -1
        self._plan, self._limits, self._clock = plan, dict(limits), clock
        speaking = [(number, seat.speaker) for number, seat in enumerate(plan.seats) if not seat.silent]
        self._voices = [(number, voices[speaker]) for number, speaker in speaking if speaker < len(voices)]
        self._gains: dict[int, float] = {}
        self._before: _Reference | None = None
        self._turn_to(0)
        #: Seconds that all measures took so far.
        self.seconds = 0.0

    def look(self, pictures: Pictures, window: Window) -> Look:
        """Return the figures of a window's new frames, uint8 RGB (F, H, W, 3), after the windows kept so far."""
        began = self._clock()
        self._turn_to(self._shows(window.index))
        before, begin = self._before, window.start + window.motion
        last = None if before is None else before.last
        changes = _changes(pictures, last)
        means = changes.mean((1, 2))
        fast = float(np.quantile(means[0 if before is None else 1 :], _FAST)) if len(pictures) > 1 else 0.0
        speech = self._speech(begin, len(pictures))
        sampled = _sampled(pictures, _SAMPLED)
        sharpness = (
            float(np.median([fineness(frame) for frame in sampled])) / self._fine if self._fine > _DULL else None
        )
        colours = _colours(sampled)
        people = self._people(pictures, speech)
        first = {} if before is None else before.people
        apart = self._apart(pictures, people)
        grown = [value - (first[number].identity or 0.0) for number, value in apart.items() if number in first]
        found: dict[str, tuple[float | None, str]] = {
            "seam": (None if before is None else float(means[0]) / max(fast, before.fast, _CALM), FIRST),
            "sharpness": (sharpness, PLAIN),
            "sharpness_kept": (None if before is None else _ratio(sharpness, before.sharpness), FIRST),
            "identity": (max(apart.values(), default=None), SHORT if len(pictures) < _LEAST else UNHEARD),
            "identity_grown": (max(grown, default=None), FIRST if before is None else UNHEARD),
            "colour": (_distance(colours, self._colours), ""),
            "colour_drift": (None if before is None else _distance(colours, before.colours), FIRST),
            "still": (self._still(changes, speech, joined=before is not None), SILENT),
            "blank": (self._blank(pictures), PLAIN),
            "mouth": self._mouth(pictures, speech, people, joined=before is not None),
        }
        found = {name: found[name] for name in MEASURES if name in self._limits}
        figures = {name: None if value is None else round(value, 4) for name, (value, _) in found.items()}
        past = {name: self._limits[name].excess(value) for name, value in figures.items() if value is not None}
        report = WindowReport(
            window=window.index + 1,
            start=round(begin / self._plan.generated_fps, 3),
            end=round((begin + len(pictures)) / self._plan.generated_fps, 3),
            figures=figures,
            unknown={name: reason for name, (value, reason) in found.items() if value is None},
            below=tuple(name for name, excess in past.items() if excess > 0),
            badness=round(sum(past.values()), 4),
        )
        after = _Reference(
            sharpness if before is None else before.sharpness,
            colours if before is None else before.colours,
            {number: replace(person, identity=apart.get(number)) for number, person in people.items()} | dict(first),
            # A copy: a view would keep all frames of the window.
            pictures[-1].copy(),
            fast,
        )
        self.seconds += self._clock() - began
        return Look(report, after)

    def keep(self, look: Look) -> None:
        """Continue after that window: it stays in the video."""
        self._before = look.after

    def _turn_to(self, number: int) -> None:
        """Measure the picture of that number, and forget the windows of another one."""
        if number == self._number:
            return
        self._number, self._picture, self._before = number, self._pictures[number], None
        self._contrast, self._fine = _contrast(self._picture), fineness(self._picture)
        self._colours = _colours([self._picture])

    def state(self) -> dict[str, Any]:
        """Return what the next window is compared with, as plain values and small arrays; {} before the first window.

        `restore` continues from it in another process, with the same picture, plan, voices and limits.
        """
        before = self._before
        if before is None:
            return {}
        people = {number: {"box": one.box.tolist(), "identity": one.identity} for number, one in before.people.items()}
        values = {key: getattr(before, key) for key in ("sharpness", "colours", "last", "fast")}
        return {"picture": self._number, **values, "people": people}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state` of another judge of the same video."""
        if not state:
            self._before = None
            return
        self._turn_to(int(state["picture"]))
        people = {
            int(number): replace(self._person(np.asarray(one["box"], np.float64)), identity=one["identity"])
            for number, one in state["people"].items()
        }
        colours, last = np.asarray(state["colours"], np.float32), np.asarray(state["last"], np.uint8)
        self._before = _Reference(state["sharpness"], colours, people, last, float(state["fast"]))

    def report(self, windows: Sequence[WindowReport]) -> Report:
        """Return the report on the windows that are in the video."""
        missing = {name: self._why_never(name, windows) for name in MEASURES}
        unknown = {name: reason for name, reason in missing.items() if reason}
        kept = [
            replace(
                window,
                figures={name: value for name, value in window.figures.items() if name not in unknown},
                unknown={name: reason for name, reason in window.unknown.items() if name not in unknown},
            )
            for window in windows
        ]
        return Report(
            below=tuple(window.window for window in windows if window.below),
            retaken=tuple(window.window for window in windows if window.attempts),
            windows=tuple(kept),
            limits={name: self._limits[name] for name in MEASURES if name in self._limits and name not in unknown},
            unknown=unknown,
            seconds=round(self.seconds, 3),
        )

    def _why_never(self, name: str, windows: Sequence[WindowReport]) -> str:
        """Return the reason why a measure has a figure in no window; "": it has."""
        if name not in self._limits:
            return {"identity": NO_FACES, "identity_grown": NO_FACES, "mouth": NO_LIPS}.get(name, OFF)
        if any(window.figures.get(name) is not None for window in windows):
            return ""
        reasons = [window.unknown[name] for window in windows if name in window.unknown]
        return "there is only one window" if reasons == [FIRST] else next(iter(reasons[::-1]), "no window was judged")

    def _people(self, pictures: Pictures, speech: Mapping[int, Floats]) -> dict[int, _Person]:
        """Return the people known before, and those who speak in this window for the first time."""
        known = {} if self._before is None else dict(self._before.people)
        if len(pictures) < _LEAST or not {"identity", "identity_grown", "mouth"} & set(self._limits):
            return known
        # A mouth that hardly moves would not be told from eyes.
        new = [number for number, curve in speech.items() if number not in known and curve.std() >= SPEAKS_HERE]
        if new:
            boxes = find_mouths(pictures, [self._plan.seats[number].box for number in new])
            known |= {number: self._person(box) for number, box in zip(new, boxes, strict=True)}
        return known

    def _person(self, box: npt.NDArray[np.float64]) -> _Person:
        compared = {"identity", "identity_grown"} & set(self._limits)
        aside = (box[2] - box[0]) * np.array([1, 0, 1, 0])
        faces = tuple(Face.of_mouth(self._picture, box + part * aside) for part in (_BESIDE if compared else ()))
        return _Person(box, faces, None)

    def _apart(self, pictures: Pictures, people: Mapping[int, _Person]) -> dict[int, float]:
        """Return the distance of each person's face from the picture's."""
        sampled = _sampled(pictures, _FACES)
        apart: dict[int, float] = {}
        for number, person in people.items():
            for face in person.faces:
                value = float(np.median([face.distance(frame) for frame in sampled]))
                apart[number] = min(value, apart.get(number, value))
                # The eyes of some heads are found a few pixels beside their place: another face is one from each place.
                if not self._is_strange(apart[number], person):
                    break
        return apart

    def _is_strange(self, value: float, person: _Person) -> bool:
        found = {"identity": value, "identity_grown": value - (value if person.identity is None else person.identity)}
        return any(self._limits[name].excess(found[name]) > 0 for name in found if name in self._limits)

    def _still(self, changes: Floats, speech: Mapping[int, Floats], *, joined: bool) -> float | None:
        """Return the seconds of the longest stretch of speech without any movement; None if nobody speaks."""
        spoken = np.any([curve > _SPEAKS for curve in speech.values()], 0) if speech else np.zeros(0, bool)
        if not spoken.any():
            return None
        # A change belongs to the later one of its two frames.
        spoken = spoken if joined else spoken[1:]
        still = changes.max((1, 2), initial=0.0) <= _STILL
        longest = run = 0
        for stands, speaks in zip(still, spoken, strict=True):
            run = run + bool(speaks) if stands else 0
            longest = max(longest, run)
        return longest / self._plan.generated_fps

    def _blank(self, pictures: Pictures) -> float | None:
        """Return the number of frames with almost no contrast, black ones included; None for such a picture."""
        if self._contrast < _PLAIN:
            return None
        return float(sum(_contrast(frame) < _BLANK * self._contrast for frame in pictures))

    def _speech(self, begin: int, count: int) -> dict[int, Floats]:
        """Return how far each speaking seat's mouth should be open in `count` frames from `begin` on: 0 to 1."""
        fps, around = self._plan.generated_fps, int(_AROUND * SAMPLE_RATE)
        curves = {}
        for number, samples in self._voices:
            if number not in self._gains:
                level = loudness(samples)
                self._gains[number] = LEVEL / level if level else 0.0
            start = int(begin / fps * SAMPLE_RATE)
            before = min(around, start)
            piece = samples[start - before : int((begin + count) / fps * SAMPLE_RATE) + around] * self._gains[number]
            if len(piece) < SAMPLE_RATE // 50:
                curves[number] = np.zeros(count, np.float32)
                continue
            seconds = np.arange(count) / fps + LEAD + before / SAMPLE_RATE
            curves[number] = Voice(piece, *mouth_of(piece.astype(np.float32))).opening(seconds)
        return curves

    def _mouth(
        self, pictures: Pictures, speech: Mapping[int, Floats], people: Mapping[int, _Person], *, joined: bool
    ) -> tuple[float | None, str]:
        """Return the least correlation of a mouth with its voice, of those who speak in this window, or the reason."""
        if "mouth" not in self._limits or len(pictures) < _LEAST:
            return None, SHORT
        # The first frame of a video is the picture, where nobody speaks yet.
        shown = slice(0 if joined else 1, None, max(1, len(pictures) // _MOUTHS))
        found = [
            correlation(mouth_openings(pictures[shown], [people[number].box], order=1)[0], curve[shown])
            for number, curve in speech.items()
            if number in people and curve[shown].std() >= SPEAKS_HERE
        ]
        return min(found, default=None), SILENT


def _sampled(pictures: Pictures, count: int) -> Pictures:
    """Return `count` frames, evenly spaced from the first to the last, or all if there are fewer."""
    chosen: Pictures = pictures[np.unique(np.linspace(0, len(pictures) - 1, count).round().astype(int))]
    return chosen


def _contrast(frame: Pictures) -> float:
    """Return the standard deviation of a frame's brightness, in grey levels, from every second pixel of each axis."""
    return float((frame[::2, ::2] @ LUMA).std())


def _changes(pictures: Pictures, last: Pictures | None) -> Floats:
    """Return the mean absolute change of each 8 x 8 part from frame to frame, grey levels: (changes, 8, 8).

    `last` is the frame before the first one; without it the first change is that of the second frame.
    """
    _, height, width, _ = pictures.shape
    rows, columns = height // _PARTS, width // _PARTS
    before, changes = last, []
    for frame in pictures:
        if before is not None:
            # Without a sign, in bytes: an eighth of the memory of a difference.
            change = np.maximum(frame, before) - np.minimum(frame, before)
            parts = change[: rows * _PARTS, : columns * _PARTS].reshape(_PARTS, rows, _PARTS, columns * 3)
            changes.append(parts.sum(1, dtype=np.uint32).sum(-1) / (rows * columns * 3))
        before = frame
    return np.asarray(changes, np.float32).reshape(-1, _PARTS, _PARTS)


def _colours(frames: Sequence[Pictures] | Pictures) -> Floats:
    """Return the mean colours of 8 x 8 parts of some frames, CIE Lab: (64, 3)."""
    from PIL import Image
    from skimage.color import rgb2lab

    height, width = frames[0].shape[:2]
    factor = max(1, -(-max(height, width) // _COLOUR_SIDE))
    small = [np.asarray(Image.fromarray(frame).reduce(factor)) for frame in frames] if factor > 1 else list(frames)
    whole = np.mean([rgb2lab(frame) for frame in small], 0)
    rows = (np.array_split(part, _PARTS, 1) for part in np.array_split(whole, _PARTS, 0))
    return np.array([part.mean((0, 1)) for row in rows for part in row], np.float32)


def _distance(colours: Floats, others: Floats) -> float:
    return float(np.linalg.norm(colours - others, axis=1).mean())


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / max(other, 1e-6)
