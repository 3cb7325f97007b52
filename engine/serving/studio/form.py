"""What the studio's form means: its values as the input of a job, and which field an error belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

#: People that the form has places for.
MOST_PEOPLE = 4
#: Seeds that the studio draws; every JSON parser reads them exactly.
SEEDS = 2**32
SILENT, FILE = "silent", "file"

Box = tuple[float, float, float, float]

#: Field of a job -> field of the form.
_FIELDS = {
    "reference_image": "picture",
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "num_frames": "seconds",
    "fps": "fps",
    "resolution": "resolution",
    "sampling_steps": "steps",
    "guidance_scale": "guidance",
    "audio_guidance_scale": "audio_guidance",
    "seed": "seed",
    "audio_type": "order",
    "turbo": "turbo",
}
#: Number of the form -> field of a job, its name for people, and its range.
_NUMBERS = {
    "fps": ("fps", "Frames per second", 1, 60),
    "steps": ("sampling_steps", "Steps", 2, 100),
    "guidance": ("guidance_scale", "Guidance by the prompt", 0, 30),
    "audio_guidance": ("audio_guidance_scale", "Guidance by the voice", 0, 30),
}


class FieldError(Exception):
    """A problem of one field of the form, as a sentence for the person who filled it in."""

    def __init__(self, field: str, text: str) -> None:
        """`field` is a field of `Form`, with `voice1` to `voice4` for those of people; "" for none."""
        super().__init__(text)
        self.field, self.text = field, text


@dataclass(frozen=True)
class Person:
    """One person in the picture."""

    name: str = ""
    #: x0, y0, x1, y1 as fractions of the picture; None: an equal part of it, from left to right.
    box: Box | None = None
    #: "file": `audio`; "silent"; or a channel of the recording as a number from 1, as text.
    voice: str = FILE
    audio: str | None = None


@dataclass(frozen=True)
class Form:
    """The values of the form. Media are paths on this machine; None and "" are what the person left empty."""

    picture: str | None = None
    people: tuple[Person, ...] = (Person(),)
    #: One recording of all people, in which each has a channel; None: each person has a file.
    recording: str | None = None
    together: bool = False
    order: str = "para"
    prompt: str = ""
    negative_prompt: str = ""
    #: Seconds of the video; None: as long as the voices.
    seconds: float | None = None
    fps: float | None = None
    resolution: str = ""
    steps: float | None = None
    guidance: float | None = None
    audio_guidance: float | None = None
    turbo: bool = False
    #: None: a random one.
    seed: float | None = None
    #: Further settings, as `overrides` of the job API.
    overrides: tuple[str, ...] = field(default=())

    def media(self) -> dict[str, str]:
        """Return field -> path of all media of the form that the job uses."""
        media = {"picture": self.picture} if self.picture else {}
        if self.together:
            return media | ({"recording": self.recording} if self.recording else {})
        voices = {f"voice{number}": one.audio for number, one in enumerate(self.people, 1) if one.voice == FILE}
        return media | {name: path for name, path in voices.items() if path}

    def settings(self) -> dict[str, Any]:
        """Return the values without media, as JSON has them."""
        values = asdict(self)
        for name in ("picture", "recording"):
            del values[name]
        values["people"] = [
            {key: value for key, value in person.items() if key != "audio"} for person in values["people"]
        ]
        return values


def read_form(values: Mapping[str, Any], media: Mapping[str, str] | None = None) -> Form:
    """Return the form of `Form.settings`, with the paths of `media`; what is unknown or has a wrong type is left out.

    The values may come from a file that anybody has written.
    """
    media = media or {}
    given = values.get("people")
    entries = [entry for entry in given if isinstance(entry, Mapping)] if isinstance(given, Sequence) else []
    people = tuple(
        Person(
            name=_text(entry.get("name"))[:40],
            box=read_box(entry.get("box")),
            voice=_voice(entry.get("voice")),
            audio=media.get(f"voice{number}"),
        )
        for number, entry in enumerate(entries[:MOST_PEOPLE], 1)
    )
    numbers: dict[str, Any] = {
        name: float(value)
        for name in ("seconds", "fps", "steps", "guidance", "audio_guidance", "seed")
        if isinstance(value := values.get(name), int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
    texts: dict[str, Any] = {name: _text(values.get(name)) for name in ("prompt", "negative_prompt", "resolution")}
    return Form(
        picture=media.get("picture"),
        people=people or (Person(audio=media.get("voice1")),),
        recording=media.get("recording"),
        together=values.get("together") is True,
        order="add" if values.get("order") == "add" else "para",
        turbo=values.get("turbo") is True,
        overrides=tuple(one for one in values.get("overrides") or () if isinstance(one, str))[:32],
        **texts,
        **numbers,
    )


def read_box(value: Any) -> Box | None:
    """Return four fractions that make a box inside the picture, or None for anything else."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 4:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in value):
        return None
    x0, y0, x1, y1 = (round(min(1.0, max(0.0, float(one))), 4) for one in value)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def job_input(
    form: Form, address: Callable[[Path, str], str], *, native_fps: float = 25.0, seed: int | None = None
) -> dict[str, Any]:
    """Return the input of the form's job (docs/api.md). Raises FieldError for the first field that is wrong.

    `address` turns a local file, of the field that is its second argument, into an address for the worker. `seed` is
    used if the form has none. `native_fps` is the model's own rate, which turns seconds into frames.
    """
    if not form.picture:
        raise FieldError("picture", "Add a picture: drop a file, paste one, or use the camera.")
    voices = _voices(form)
    if not form.prompt.strip():
        raise FieldError("prompt", "Describe what the video shows, such as: A woman speaks.")
    job: dict[str, Any] = {
        "reference_image": address(Path(form.picture), "picture"),
        "speakers": [],
        "prompt": form.prompt.strip(),
    }
    known: dict[str, str] = {}
    for person, (path, name, channel) in zip(form.people, voices, strict=True):
        speaker: dict[str, Any] = {"silence": True}
        if path is not None:
            if path not in known:
                known[path] = address(Path(path), name)
            speaker = {"audio": known[path]} | ({} if channel is None else {"channel": channel})
        job["speakers"].append(speaker | ({} if person.box is None else {"region": {"box": list(person.box)}}))
    if form.order == "add":
        job["audio_type"] = "add"
    if form.negative_prompt.strip():
        job["negative_prompt"] = form.negative_prompt.strip()
    if form.resolution:
        job["resolution"] = form.resolution
    if form.turbo:
        job["turbo"] = True
    for name, (target, label, least, most) in _NUMBERS.items():
        value = getattr(form, name)
        if value is not None:
            if not least <= value <= most:
                raise FieldError(name, f"{label}: give a number from {least} to {most}.")
            job[target] = int(value) if float(value).is_integer() else value
    if "sampling_steps" in job and not isinstance(job["sampling_steps"], int):
        raise FieldError("steps", "Steps: give a whole number from 2 to 100.")
    job |= _length(form, native_fps) | {"seed": _seed(form, seed)}
    return job | ({"overrides": list(form.overrides)} if form.overrides else {})


def form_field(name: str, form: Form) -> str:
    """Return the field of the form that the job's field `name` of an error is about; "" if there is none."""
    if match := re.match(r"(?:speakers\[(\d)\]|audio_(\d)|region_(\d))(.*)", name):
        index = int(match[1]) + 1 if match[1] else int(match[2] or match[3])
        if "region" in name:
            return "people"
        if form.together:
            return "recording"
        return f"voice{index}" if index <= MOST_PEOPLE else "people"
    return "people" if name.startswith("speakers") else _FIELDS.get(name.partition(".")[0].partition("[")[0], "")


def _voices(form: Form) -> list[tuple[str | None, str, int | None]]:
    """Return for each person the path of the voice, the field of the form, and the channel. Raises FieldError."""
    if not form.people:
        raise FieldError("people", "Add a person who speaks.")
    if form.together and not form.recording:
        raise FieldError("recording", "Add the recording in which each person has a channel.")
    voices: list[tuple[str | None, str, int | None]] = []
    for number, person in enumerate(form.people, 1):
        name = f"voice{number}"
        if person.voice == SILENT:
            voices.append((None, name, None))
        elif form.together:
            voices.append((form.recording, "recording", _channel(person.voice) or number))
        elif person.audio:
            voices.append((person.audio, name, None))
        else:
            who = person.name or f"person {number}"
            raise FieldError(name, f"Add a voice for {who}, or choose Silent.")
    if not any(path for path, _, _ in voices):
        raise FieldError("voice1", "Somebody must speak: add a voice for at least one person.")
    return voices


def _length(form: Form, native_fps: float) -> dict[str, Any]:
    if form.seconds is None:
        return {"num_frames": "auto"}
    fps = form.fps or native_fps
    frames = round(form.seconds * fps) if math.isfinite(form.seconds) else 0
    if frames < 1:
        raise FieldError("seconds", "Length: give more than 0 seconds, or leave it empty.")
    return {"num_frames": frames, "fps": int(fps) if float(fps).is_integer() else fps}


def _seed(form: Form, drawn: int | None) -> int:
    if form.seed is None or form.seed < 0:
        return 42 if drawn is None else drawn
    if not float(form.seed).is_integer() or form.seed >= 2**53:
        raise FieldError("seed", "Seed: give a whole number below 9007199254740992, or leave it empty.")
    return int(form.seed)


def _voice(value: Any) -> str:
    return value if isinstance(value, str) and (value in (SILENT, FILE) or _channel(value)) else FILE


def _channel(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and re.fullmatch(r"[1-9][0-9]?", value) else None


def _text(value: Any) -> str:
    return value[:10_000] if isinstance(value, str) else ""
