"""Settings from a video: the recipe that the engine stores in its MP4s, as values of the form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.serving.studio.form import FILE, SILENT, Form, read_form


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
    turbo = sampler.get("bundle") == "turbo"
    form = read_form(
        {
            "prompt": request.get("prompt"),
            "negative_prompt": request.get("negative_prompt"),
            "seconds": count / rate if count and rate else None,
            "fps": fps,
            "seed": request.get("seed"),
            "order": request.get("audio_type"),
            "resolution": provenance.get("resolution"),
            "turbo": turbo,
            "steps": sampler.get("steps"),
            "guidance": guidance.get("text_scale"),
            "audio_guidance": guidance.get("audio_scale"),
            "people": [
                {"name": f"Person {number}", "box": one.get("box"), "voice": SILENT if one.get("silence") else FILE}
                for number, one in enumerate(people, 1)
            ],
        }
    )
    told = ["Add the picture and the voices: they are not in a video."]
    if any(one.get("mask") for one in people):
        told.append("A person's place was a mask, which this form does not have; draw a box instead.")
    if request.get("prompts") or request.get("images"):
        told.append("The video changes its prompt or picture over time, which this form does not have.")
    if isinstance(model := provenance.get("model"), str):
        told.append(f"The video was made by the model {model[:60]}.")
    return form, told


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    """Return a number above 0, or None."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
