"""What the studio's form means: its values as the input of a job, and which field an error belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.serving.studio.dialogue import placed_script
from engine.serving.studio.fields import (
    CHANNELS,
    FILE,
    FILES,
    FOUND,
    MOST_PEOPLE,
    MOST_SCRIPT,
    SCRIPT,
    SILENT,
    SOURCES,
    FieldError,
    Person,
    equal_boxes,
    read_box,
)

#: Seeds that the studio draws; every JSON parser reads them exactly.
SEEDS = 2**32
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
    "script": "script",
    "voices": "recording",
    "boxes": "people",
    "people": "people",
    "diariser": "recording",
    "speech": "script",
}
#: Number of the form -> field of a job, its name for people, and its range.
_NUMBERS = {
    "fps": ("fps", "Frames per second", 1, 60),
    "steps": ("sampling_steps", "Steps", 2, 100),
    "guidance": ("guidance_scale", "Guidance by the prompt", 0, 30),
    "audio_guidance": ("audio_guidance_scale", "Guidance by the voice", 0, 30),
}


@dataclass(frozen=True)
class Form:
    """The values of the form. Media are paths on this machine; None and "" are what the person left empty."""

    picture: str | None = None
    people: tuple[Person, ...] = (Person(),)
    #: One recording of all people, for CHANNELS and FOUND.
    recording: str | None = None
    #: One of SOURCES.
    voices: str = FILES
    #: Who says what (docs/dialogue.md), for SCRIPT.
    script: str = ""
    #: Who finds the speakers of FOUND; "": the worker's own choice.
    diariser: str = ""
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
        if self.voices == SCRIPT:
            return media
        if self.voices in (CHANNELS, FOUND):
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
    # Histories of earlier studios have `together`.
    source = values.get("voices", CHANNELS if values.get("together") is True else FILES)
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
        voices=source if source in SOURCES else FILES,
        script=_text(values.get("script"), MOST_SCRIPT),
        diariser=chosen if re.fullmatch(r"[\w-]{0,100}", chosen := _text(values.get("diariser"), 101)) else "",
        order="add" if values.get("order") == "add" else "para",
        turbo=values.get("turbo") is True,
        overrides=tuple(one for one in values.get("overrides") or () if isinstance(one, str))[:32],
        **texts,
        **numbers,
    )


def job_input(
    form: Form,
    address: Callable[[Path, str], str],
    *,
    native_fps: float = 25.0,
    most_frames: int | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Return the input of the form's job (docs/api.md). Raises FieldError for the first field that is wrong.

    `address` turns a local file, of the field that is its second argument, into an address for the worker. `seed` is
    used if the form has none. `native_fps` is the model's own rate, which turns seconds into frames, of which the
    worker allows `most_frames`.
    """
    if not form.picture:
        raise FieldError("picture", "Add a picture: drop a file, paste one, or use the camera.")
    who = _who(form, address)
    if not form.prompt.strip():
        raise FieldError("prompt", "Describe what the video shows, such as: A woman speaks.")
    job: dict[str, Any] = {
        "reference_image": address(Path(form.picture), "picture"),
        **who,
        "prompt": form.prompt.strip(),
    }
    if form.order == "add" and form.voices == FILES and len(form.people) > 1:
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
    job |= _length(form, native_fps, most_frames) | {"seed": _seed(form, seed)}
    finder = [f"diariser={form.diariser}"] if form.voices == FOUND and form.diariser else []
    overrides = [*finder, *form.overrides]
    return job | ({"overrides": overrides} if overrides else {})


def form_field(name: str, form: Form) -> str:
    """Return the field of the form that the job's field `name` of an error is about; "" if there is none."""
    if match := re.match(r"(?:speakers\[(\d)\]|audio_(\d)|region_(\d))(.*)", name):
        index = int(match[1]) + 1 if match[1] else int(match[2] or match[3])
        if "region" in name:
            return "people"
        if form.voices in (CHANNELS, FOUND):
            return "recording"
        if form.voices == SCRIPT:
            return "script"
        return f"voice{index}" if index <= MOST_PEOPLE else "people"
    return "people" if name.startswith("speakers") else _FIELDS.get(name.partition(".")[0].partition("[")[0], "")


def _who(form: Form, address: Callable[[Path, str], str]) -> dict[str, Any]:
    """Return the fields of the job that say who speaks, and where. Raises FieldError."""
    if form.voices == SCRIPT:
        return {"script": placed_script(form.script, form.people)}
    if form.voices == FOUND:
        if not form.people:
            raise FieldError("people", "Add a person who speaks.")
        if not form.recording:
            raise FieldError("recording", "Add the recording in which the people speak.")
        return {
            "voices": address(Path(form.recording), "recording"),
            "people": len(form.people),
            **_places(form.people),
        }
    speakers, known = [], {}
    for person, (path, name, channel) in zip(form.people, _voices(form), strict=True):
        speaker: dict[str, Any] = {"silence": True}
        if path is not None:
            if path not in known:
                known[path] = address(Path(path), name)
            speaker = {"audio": known[path]} | ({} if channel is None else {"channel": channel})
        speakers.append(speaker | ({} if person.box is None else {"region": {"box": list(person.box)}}))
    return {"speakers": speakers}


def _places(people: Sequence[Person]) -> dict[str, Any]:
    """Return the boxes of found speakers in the order in which they first speak. Raises FieldError."""
    order = [_channel(person.voice) or number for number, person in enumerate(people, 1)]
    if sorted(order) != list(range(1, len(people) + 1)):
        raise FieldError("people", "Two people cannot be the same speaker: choose who speaks first, second and so on.")
    if order == sorted(order) and all(person.box is None for person in people):
        return {}
    parts = equal_boxes(len(people))
    boxes = {number: one.box or part for number, one, part in zip(order, people, parts, strict=True)}
    return {"boxes": [list(boxes[number]) for number in sorted(order)]}


def _voices(form: Form) -> list[tuple[str | None, str, int | None]]:
    """Return for each person the path of the voice, the field of the form, and the channel. Raises FieldError."""
    if not form.people:
        raise FieldError("people", "Add a person who speaks.")
    together = form.voices == CHANNELS
    if together and not form.recording:
        raise FieldError("recording", "Add the recording in which each person has a channel.")
    voices: list[tuple[str | None, str, int | None]] = []
    for number, person in enumerate(form.people, 1):
        name = f"voice{number}"
        if person.voice == SILENT:
            voices.append((None, name, None))
        elif together:
            voices.append((form.recording, "recording", _channel(person.voice) or number))
        elif person.audio:
            voices.append((person.audio, name, None))
        else:
            who = person.name or f"person {number}"
            raise FieldError(name, f"Add a voice for {who}, or choose Silent.")
    if not any(path for path, _, _ in voices):
        raise FieldError("voice1", "Somebody must speak: add a voice for at least one person.")
    return voices


def _length(form: Form, native_fps: float, most: int | None) -> dict[str, Any]:
    if form.seconds is None:
        return {"num_frames": "auto"}
    fps = form.fps or native_fps
    frames = round(form.seconds * fps) if math.isfinite(form.seconds) else 0
    if frames < 1:
        raise FieldError("seconds", "Length: give more than 0 seconds, or leave it empty.")
    if most is not None and frames > most:
        raise FieldError(
            "seconds", f"Length: at most {math.floor(100 * most / fps) / 100:g} s, {most} frames, are allowed here."
        )
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


def _text(value: Any, most: int = 10_000) -> str:
    return value[:most] if isinstance(value, str) else ""
