"""A scene: who is where, at what time of day and in what mood; its prompt and its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from scripts.train_tiny.people import Mouth, Person, draw_person, random_person
from scripts.train_tiny.places import LIGHTS, PLACES, backdrop
from scripts.train_tiny.speech import Split

#: Mood -> the smile it means and the words for it; "" says nothing and means nothing.
MOODS: dict[str, tuple[float, tuple[str, ...]]] = {
    "happy": (1.0, ("happy", "cheerful", "smiling", "joyful")),
    "sad": (-1.0, ("sad", "unhappy", "gloomy", "sorrowful")),
    "": (0.0, ()),
}
#: Energy -> how much heads move and the words for it.
ENERGIES: dict[str, tuple[float, tuple[str, ...]]] = {
    "calm": (0.25, ("calm", "gentle", "keeping still", "relaxed")),
    "lively": (0.75, ("lively", "energetic", "animated", "excited")),
    "": (0.5, ()),
}
TIMES: dict[str, tuple[str, ...]] = {
    "day": ("in the daytime", "on a bright day", "at noon", "in the morning"),
    "evening": ("in the evening", "at sunset", "at dusk"),
    "night": ("at night", "late at night", "after dark"),
}
#: Seconds of scene time in which a face takes on its mood.
MOOD_SECONDS = 0.8


@dataclass(frozen=True)
class DrawnScene:
    """What a clip shows. `size` is (width, height) in pixels."""

    size: tuple[int, int]
    people: tuple[Person, ...]
    place: str
    time_of_day: str
    mood: str
    energy: str
    words: tuple[int, ...]
    """Random numbers that choose among the prompt's phrasings."""
    backdrop: Image.Image
    """The place without people, `scale` times as large."""
    scale: int


def random_scene(seed: int, size: tuple[int, int], people: int | None = None, split: Split = "train") -> DrawnScene:
    """Return the scene of a seed, with one or two `people` (None: either). The splits share no face."""
    rng = np.random.default_rng((1, split == "held_out", seed))
    width, height = size
    count = int(rng.choice((1, 2, 2))) if people is None else people
    mood, energy = _either(rng, ("happy", "sad", "")), _either(rng, ("calm", "lively", ""))
    time_of_day, place = _either(rng, ("day", "day", "evening", "night")), _either(rng, tuple(PLACES))
    light = LIGHTS[time_of_day]
    scale = 4 if min(size) < 150 else 3
    faces = []
    for number in range(count):
        if count == 1:
            radius = min(height * rng.uniform(0.27, 0.35), width * 0.36)
            x = width * rng.uniform(0.42, 0.58)
        else:
            radius = min(height * rng.uniform(0.235, 0.295), width * rng.uniform(0.225, 0.245))
            x = width * ((0.255, 0.745)[number] + rng.uniform(-0.015, 0.015))
        y = max(height * rng.uniform(0.40, 0.50), 1.22 * radius)
        faces.append(
            random_person(rng, x, y, radius, smile=MOODS[mood][0], energy=ENERGIES[energy][0], tint=light.on_people)
        )
    return DrawnScene(
        size=size,
        people=tuple(faces),
        place=place,
        time_of_day=time_of_day,
        mood=mood,
        energy=energy,
        words=tuple(int(number) for number in rng.integers(0, 1 << 16, 6)),
        backdrop=backdrop(place, light, (width * scale, height * scale), rng),
        scale=scale,
    )


def draw(scene: DrawnScene, time: float, mouths: Sequence[Mouth] = ()) -> npt.NDArray[np.uint8]:
    """Return the frame (height, width, 3) at `time` seconds; people without a mouth in `mouths` keep theirs shut."""
    canvas = scene.backdrop.copy()
    pen = ImageDraw.Draw(canvas)
    mood = min(max(time / MOOD_SECONDS, 0.0), 1.0)
    mood *= mood * (3 - 2 * mood)
    for number, person in enumerate(scene.people):
        mouth = mouths[number] if number < len(mouths) else Mouth()
        draw_person(pen, person, mouth, time, mood, scene.scale)
    # A filter two pixels wide: contours stay clean without steps, and an autoencoder need not spend itself on them.
    return np.asarray(canvas.resize(scene.size, Image.Resampling.BILINEAR))


def prompt(scene: DrawnScene) -> str:
    """Return an English sentence that says what the scene means, in one of several phrasings."""
    say, order, *picks = scene.words
    two = len(scene.people) == 2
    who = (
        ("Two people", "Two cartoon people", "A pair of friends")
        if two
        else ("A person", "A cartoon person", "Somebody")
    )
    verbs = ("talk", "have a conversation", "speak") if two else ("talks", "is talking", "speaks")
    parts = [
        f"{who[say % 3]} {verbs[say // 3 % 3]} {scene.place}",
        TIMES[scene.time_of_day][picks[0] % len(TIMES[scene.time_of_day])],
    ]
    moods, energies = MOODS[scene.mood][1], ENERGIES[scene.energy][1]
    manner = [words[pick % len(words)] for words, pick in ((moods, picks[1]), (energies, picks[2])) if words]
    if order % 2:
        manner.reverse()
    sentence = " ".join(parts)
    if not manner:
        return sentence + "."
    joined = " and ".join(manner)
    if order // 2 % 3 == 0:
        return f"{sentence}, {joined}."
    if order // 2 % 3 == 1:
        return f"{joined.capitalize()}: {sentence[0].lower()}{sentence[1:]}."
    return f"{sentence}. {'They are' if two else 'The person is'} {joined}."


def _either(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]
