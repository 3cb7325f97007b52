"""Make cases from seeds and recordings: pictures and voices as files for an engine, and the true mouth movement."""

from __future__ import annotations

import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.data import Frames
from engine.errors import EngineError, RequestError
from engine.evaluation.metrics import SPEAKS, SPEAKS_HERE, Floats, Pictures, times
from engine.evaluation.voices import LEVEL, Voice, levelled, mouth_of
from engine.media.audio import VOICE_RATE, decode
from engine.stages.write import Writer
from scripts.train_tiny import clips, scene, speech
from scripts.train_tiny import people as drawn_people

#: Suffixes of recordings.
SUFFIXES = (".flac", ".wav")
#: Most seeds that are tried for each case.
_PATIENCE = 60
#: Frame rate of the clips that are drawn.
FPS = 25.0


class Curve(Protocol):
    """How far a mouth is open while a voice speaks; `engine.evaluation.voices.Voice` is one."""

    def opening(self, seconds: npt.ArrayLike) -> Floats:
        """Return 0, shut, to 1, wide, at each of `seconds`."""
        ...


@dataclass(frozen=True)
class Case:
    """Inputs for an engine, and the truth. There are n people, from left to right, and F frames."""

    seed: int
    prompt: str
    size: tuple[int, int]
    image: Path
    voices: tuple[Path, ...]
    silent: tuple[bool, ...]
    curves: tuple[Curve, ...]
    frames: int
    #: The clip as MP4, at FPS, as far as it is drawn, and the openings of its mouths: (n, F).
    rendered: Path
    openings: Floats
    #: (n, F, 4) and (n, 4): x0, y0, x1, y1 in pixels of the picture.
    mouths: Floats
    faces: Floats
    skins: tuple[int, ...]

    def driving(self, frames: int, fps: float = FPS) -> Floats:
        """Return (n, frames): how far each mouth should be open."""
        return np.stack([curve.opening(times(frames, fps)) for curve in self.curves])


@dataclass(frozen=True)
class Excerpt:
    """An excerpt of a recording: its voice as a file, its envelope, and its number of frames."""

    recording: str
    start: float
    voice: Path
    curve: Curve
    frames: int


#: Makes the voice of (seed, seconds, split), as `scripts.train_tiny.speech.say` does.
Speak = Callable[[int, float, Any], Any]


def prepare(
    seed: int,
    folder: Path,
    *,
    frames: int,
    people: int,
    size: tuple[int, int] = (160, 96),
    silent: int = 0,
    shut: bool = False,
    speak: Speak | None = None,
    drawn: int | None = None,
) -> Case | None:
    """Draw the held-out clip of `seed` and write an engine's inputs into `folder`; None if it does not fit.

    It fits if `silent` people say nothing while all others speak all the time, nobody in turns, and with `shut` if the
    mouths in the picture are shut. `speak` makes the voices (eSpeak NG). With `drawn` only that many first frames are
    drawn. Raises EngineError without eSpeak NG.
    """
    spoken_lines: list[Any] = []

    def listen(number: int, seconds: float, split: speech.Split) -> Any:
        spoken_lines.append((speak or speech.say)(number, seconds, split))
        return spoken_lines[-1]

    try:
        clip = clips.make_clip(
            seed, frames=frames, fps=FPS, size=size, people=people, split="held_out", speak=listen, drawn=drawn
        )
    except FileNotFoundError as error:
        if error.filename != "espeak-ng":
            raise
        raise EngineError(
            "the voices need espeak-ng, which is not installed", field="evaluate_tiny", hint="apt-get install espeak-ng"
        ) from error
    # A voice that takes turns is a changed copy, which has no curve of its own.
    voices = [next((voice for voice in spoken_lines if voice.samples is samples), None) for samples in clip.voices]
    curves: list[Any] = [
        speech.silence(frames / FPS) if quiet else voice for voice, quiet in zip(voices, clip.silent, strict=True)
    ]
    if sum(clip.silent) != silent or not all(
        quiet or (curve is not None and float(curve.opening(times(frames, FPS))[1:].std()) > SPEAKS)
        for curve, quiet in zip(curves, clip.silent, strict=True)
    ):
        return None
    if shut and clip.openings[:, 0].max() > 0.05:
        return None
    return _keep(clip, seed, folder, curves)


def find_cases(
    first: int,
    count: int,
    folder: Path,
    *,
    frames: int,
    people: int | Sequence[int],
    sizes: Sequence[tuple[int, int]],
    silent: int = 0,
    shut: bool = False,
    even: bool = False,
    speak: Speak | None = None,
    drawn: int | None = None,
) -> list[Case]:
    """Return the first `count` cases from the seed `first` on; see `prepare`.

    `sizes`, and `people` if there are several, alternate from case to case. With `even` all skin classes are equally
    frequent for the first person. Raises EngineError if too few are found.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = (people,) if isinstance(people, int) else tuple(people)
    classes = len(drawn_people.SKINS)
    cases: list[Case] = []
    for seed in range(first, first + _PATIENCE * count):
        if len(cases) == count:
            break
        size, number = sizes[len(cases) % len(sizes)], numbers[len(cases) % len(numbers)]
        if even:
            skin = scene.random_scene(seed, size, number, "held_out").people[0].skin
            if sum(case.skins[0] == skin for case in cases) > len(cases) // classes:
                continue
        choices: dict[str, Any] = {"silent": silent, "shut": shut, "speak": speak, "drawn": drawn}
        case = prepare(seed, folder, frames=frames, people=number, size=size, **choices)
        if case is not None:
            cases.append(case)
    if len(cases) < count:
        raise EngineError(f"{len(cases)} of {count} clips were found", field="evaluate_tiny", hint="try another --seed")
    return cases


def find_pieces(folder: Path, into: Path, *, frames: int) -> list[Excerpt]:
    """Cut the recordings in `folder` into excerpts of at most `frames` frames in which somebody speaks.

    Raises RequestError for a folder without recordings, or with recordings that cannot be read or say nothing.
    """
    into.mkdir(parents=True, exist_ok=True)
    excerpts = []
    for path in recordings(folder):
        samples = decode(path, VOICE_RATE, "mono", field="--voices")
        voice = Voice(samples, *mouth_of(levelled(samples, LEVEL)))
        whole, step = len(samples) / VOICE_RATE, frames / FPS
        for number in range(max(1, int(whole / step))):
            start = number * step
            length = min(frames, int((whole - start) * FPS + 1e-6))
            curve = _Later(voice, start)
            if length < 25 or float(curve.opening(times(length, FPS))[1:].std()) < SPEAKS_HERE:
                continue
            piece = samples[round(start * VOICE_RATE) : round((start + length / FPS) * VOICE_RATE)]
            target = into / f"{path.stem}-{path.suffix[1:]}-{number}.wav"
            write_voice(target, piece)
            excerpts.append(Excerpt(path.name, start, target, curve, length))
    if not excerpts:
        raise RequestError(f"nobody speaks for a second in {folder}", field="--voices", hint="give recorded speech")
    return excerpts


def recordings(folder: Path) -> list[Path]:
    """Return the recordings in `folder`. Raises RequestError if there are none."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        what = "has no recordings" if folder.is_dir() else "is not a folder"
        raise RequestError(f"{folder} {what}", field="--voices", hint=f"a folder of {' or '.join(SUFFIXES)} files")
    return paths


def write_voice(path: Path, samples: Floats) -> None:
    """Write mono samples, -1 to 1, as a WAV file of 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(VOICE_RATE)
        file.writeframes(np.rint(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def write_film(path: Path, frames: Pictures, fps: float) -> None:
    """Write frames as the engine does."""
    with Writer(path, (frames.shape[2], frames.shape[1]), fps) as writer:
        writer.add(Frames(frames, fps))
        writer.finish()


@dataclass(frozen=True)
class _Later:
    curve: Curve
    start: float

    def opening(self, seconds: npt.ArrayLike) -> Floats:
        return self.curve.opening(np.asarray(seconds, np.float64) + self.start)


def _keep(clip: Any, seed: int, folder: Path, curves: Sequence[Curve]) -> Case:
    height, width = clip.frames.shape[1:3]
    frames = clip.openings.shape[1]
    stem = f"{seed}-{len(clip.skins)}-{width}x{height}-{frames}"
    image, rendered = folder / f"{stem}.png", folder / f"{stem}-drawn.mp4"
    Image.fromarray(clip.frames[0]).save(image)
    write_film(rendered, clip.frames, FPS)
    voices = tuple(folder / f"{stem}-{person}.wav" for person in range(len(clip.voices)))
    for path, samples in zip(voices, clip.voices, strict=True):
        write_voice(path, samples)
    return Case(
        seed=seed,
        prompt=clip.prompt,
        size=(width, height),
        image=image,
        voices=voices,
        silent=clip.silent,
        curves=tuple(curves),
        frames=frames,
        rendered=rendered,
        openings=clip.openings,
        mouths=clip.mouth_boxes,
        faces=clip.face_boxes,
        skins=clip.skins,
    )
