"""Settings from a video: the recipe that the engine stores in its MP4s, as values of the form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.serving.studio.fields import CHANNELS, FILE, FILES, FOUND, SCRIPT, SILENT, read_box
from engine.serving.studio.form import Form, read_form


def form_of(provenance: Mapping[str, Any]) -> tuple[Form, list[str]]:
    """Return the form of a video's provenance, and sentences about what the form cannot take over.

    Media are not in a video, so the form has none. The provenance may be anybody's: wrong values are left out.
    """
    request, sampler, guidance = (_mapping(provenance.get(name)) for name in ("request", "sampler", "guidance"))
    frames, fps = request.get("frames"), request.get("fps")
    native = _mapping(provenance.get("model_settings")).get("fps")
    rate = _number(fps) or _number(native)
    count = _number(frames)
    speakers = request.get("speakers")
    people = [_mapping(one) for one in speakers] if isinstance(speakers, list) else []
    source = _source(request, people)
    turbo = sampler.get("bundle") == "turbo"
    form = read_form(
        {
            "prompt": request.get("prompt"),
            "negative_prompt": request.get("negative_prompt"),
            "seconds": count / rate if count and rate else None,
            "fps": fps,
            "seed": request.get("seed"),
            "voices": source,
            "script": request.get("script"),
            "diariser": _mapping(provenance.get("diariser")).get("name"),
            "order": request.get("audio_type"),
            "resolution": provenance.get("resolution"),
            "turbo": turbo,
            "steps": sampler.get("steps"),
            "guidance": guidance.get("text_scale"),
            "audio_guidance": guidance.get("audio_scale"),
            "people": _people(people, source),
        }
    )
    media = {SCRIPT: "the picture: it is", FOUND: "the picture and the recording: they are"}
    told = [f"Add {media.get(form.voices, 'the picture and the voices: they are')} not in a video."]
    if any(one.get("mask") for one in people):
        told.append("A person's place was a mask, which this form does not have; draw a box instead.")
    if request.get("prompts") or request.get("images"):
        told.append("The video changes its prompt or picture over time, which this form does not have.")
    if isinstance(model := provenance.get("model"), str):
        told.append(f"The video was made by the model {model[:60]}.")
    return form, told


def _source(request: Mapping[str, Any], people: Sequence[Mapping[str, Any]]) -> str:
    """Return where the voices came from."""
    if "script" in request:
        return SCRIPT
    speak = [one for one in people if not one.get("silence")]
    if speak and all("channel" in one for one in speak):
        return CHANNELS
    return FOUND if "people" in request else FILES


def _people(people: Sequence[Mapping[str, Any]], source: str) -> list[dict[str, Any]]:
    """Return the people from left to right, as the form has them."""
    entries = []
    for number, one in enumerate(people, 1):
        voice = SILENT if one.get("silence") else FILE
        if source == FOUND:
            voice = str(number)
        elif source == CHANNELS and voice != SILENT:
            voice = str(one["channel"])
        entries.append({"box": one.get("box"), "voice": voice})
    boxes = [read_box(entry["box"]) for entry in entries]
    middles = [box[0] + box[2] for box in boxes if box is not None]
    if len(middles) == len(entries):
        entries = [entry for _, entry in sorted(zip(middles, entries, strict=True), key=lambda one: one[0])]
    return [{"name": f"Person {number}", **entry} for number, entry in enumerate(entries, 1)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """Return a number above 0, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
