"""Clips: moving pictures of talking people, their voices, and the truth about their mouths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.evaluation.voices import REST_WIDTH, Floats, Voice
from scripts.train_tiny.people import Mouth
from scripts.train_tiny.scene import MOOD_SECONDS, DrawnScene, draw, prompt, random_scene
from scripts.train_tiny.speech import Speak, Split, say, silence

#: A mouth is drawn as it is in the middle of a native frame's time (25 fps), at every frame rate: the engine's audio
#: slots sit at i / fps, so that this is the same small lead everywhere.
SAMPLED_AT = 0.02
#: Share of the clips of one person for training in which nothing is said.
ALONE_SILENT = 0.12


@dataclass(frozen=True)
class Clip:
    """A clip of n people and F frames.

    `frames` is uint8 (F, H, W, 3), RGB. `voices` are n float32 arrays, 16 kHz, zeros for a silent person. `openings`
    and `widths` (n, F) are the truth, 0 to 1. `mouth_boxes` (n, F, 4) and `face_boxes` (n, 4) are x0, y0, x1, y1 in
    pixels, within the picture. `skins` are classes from 0, light, to 5, dark. `shut_first` says that frame 0, the
    picture the model is given, was drawn with shut mouths whatever is heard. `silent` names those who say nothing.
    """

    frames: npt.NDArray[np.uint8]
    fps: float
    voices: tuple[Floats, ...]
    openings: Floats
    widths: Floats
    mouth_boxes: Floats
    face_boxes: Floats
    skins: tuple[int, ...]
    prompt: str
    scene: DrawnScene
    shut_first: bool
    silent: tuple[bool, ...]

    def swapped(self) -> tuple[Floats, ...]:
        """Return the voices in reverse order: each mouth is to follow the other's."""
        return self.voices[::-1]


def make_clip(
    seed: int,
    *,
    frames: int,
    fps: float = 25.0,
    size: tuple[int, int] = (160, 96),
    people: int | None = None,
    split: Split = "train",
    speak: Speak = say,
    drawn: int | None = None,
) -> Clip:
    """Return the clip of a seed: `frames` at `fps` (8 to 30) of `size` (width, height), with one or two `people`.

    Of two people, a quarter of the clips has one silent and a fifth lets them take turns; for training, one person
    alone may be silent, too. In 40 % of the clips the mouths of frame 0 are shut and open in the two frames after it.
    Half of the clips begin with the scene, while the mood of the faces grows; the others begin later. Of long clips
    `drawn` draws the first frames alone; everything else is of all frames. Raises ValueError for a frame rate outside
    of 8 to 30.
    """
    if not 8 <= fps <= 30:
        raise ValueError(f"fps is {fps:g}; mouths are drawn at 8 to 30 frames a second")
    rng = np.random.default_rng((2, split == "held_out", seed))
    scene = random_scene(seed, size, people, split)
    count = len(scene.people)
    seconds = frames / fps
    seconds_shown = np.arange(frames) / fps + SAMPLED_AT
    voices = [_speaking(rng, seconds, seconds_shown, split, speak) for _ in range(count)]
    manner = rng.random()
    silent = [False] * count
    if count == 1 and split == "train" and manner < ALONE_SILENT:
        voices[0], silent[0] = silence(seconds), True
    if count == 2 and manner < 0.25:
        quiet = int(rng.integers(2))
        voices[quiet], silent[quiet] = silence(seconds), True
    elif count == 2 and manner < 0.45:
        change = rng.uniform(0.35, 0.65) * seconds
        first = int(rng.integers(2))
        voices[first] = voices[first].during(-1, change)
        voices[1 - first] = voices[1 - first].during(change, seconds + 1)
    openings = np.stack([voice.opening(seconds_shown) for voice in voices])
    widths = np.stack([voice.width(seconds_shown) for voice in voices])
    shut_first = bool(rng.random() < 0.4)
    if shut_first:
        fade_in = np.clip(np.arange(frames) / fps / 0.08, 0, 1).astype(np.float32)
        openings, widths = openings * fade_in, REST_WIDTH + (widths - REST_WIDTH) * fade_in
    start = 0.0 if rng.random() < 0.5 else float(rng.uniform(MOOD_SECONDS, 30))
    times = start + np.arange(frames) / fps
    pictures = [
        draw(scene, time, [Mouth(float(o), float(w)) for o, w in zip(openings[:, i], widths[:, i], strict=True)])
        for i, time in enumerate(times[:drawn])
    ]
    limits = np.array((*size, *size))
    return Clip(
        frames=np.stack(pictures),
        fps=fps,
        voices=tuple(voice.samples for voice in voices),
        openings=openings.astype(np.float32),
        widths=widths.astype(np.float32),
        mouth_boxes=np.clip([[p.mouth_box(time) for time in times] for p in scene.people], 0, limits).astype(
            np.float32
        ),
        face_boxes=np.clip([p.face_box() for p in scene.people], 0, limits).astype(np.float32),
        skins=tuple(person.skin for person in scene.people),
        prompt=prompt(scene),
        scene=scene,
        shut_first=shut_first,
        silent=tuple(silent),
    )


def _speaking(
    rng: np.random.Generator, seconds: float, times: npt.NDArray[np.float64], split: Split, speak: Speak
) -> Voice:
    """Return a voice that says something in the clip: a clip of one pause teaches nothing."""
    for _ in range(5):
        voice = speak(int(rng.integers(1 << 31)), seconds, split)
        if float(voice.opening(times).std()) > 0.15:
            break
    return voice
