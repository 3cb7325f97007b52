"""Parses a job as the platform delivers it: checks it, fills in defaults and builds the engine's request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.data import Cue, Region, Request, Speaker
from engine.data.budget import Budget
from engine.errors import RequestError
from engine.serving.jobs.defaults import JOB_DEFAULTS, JobDefaults, input_defaults
from engine.serving.jobs.document_bounds import MOST_ENTRIES, check_bounds
from engine.serving.jobs.inline import as_address
from engine.serving.jobs.schema import (
    DEFAULT_LIMITS,
    SECRET,
    JobLimits,
    input_fields,
    quote_value,
    unknown_field,
    validate,
)
from engine.serving.jobs.secrets import SecretStore
from engine.serving.jobs.speakers import Box, parse_boxes, parse_speakers

Action = Literal["generate", "plan", "health", "capabilities", "selftest"]

#: Field of a job -> the config key that it sets.
_KEYS = {
    "resolution": "resolution",
    "sampling_steps": "sampler.steps",
    "guidance_scale": "guidance.text_scale",
    "audio_guidance_scale": "guidance.audio_scale",
}

#: The engine's name of an input -> the name of the field in a job.
FIELDS = {
    "request.image": "reference_image",
    "request.images": "reference_images",
    "request.video": "reference_video",
    "request.frames": "num_frames",
    "request.filename": "output.filename",
    "request.store": SECRET,
    "request.sink": "output.sink",
    "request.live": "live",
    "request.preview": "preview",
    "sink.limit": "output.sink",
}


@dataclass(frozen=True)
class ParsedJob:
    """One checked job. Its repr shows neither media nor keys."""

    #: "" if the platform sent none.
    id: str
    action: Action
    #: None for the actions without media: health, capabilities and selftest.
    request: Request | None = field(default=None, repr=False)
    #: Name of the sink that the job asks for; None: the worker's sink.
    sink: str | None = None
    #: File name for the sink, as in the request; None: the sink chooses one.
    filename: str | None = None
    #: The job's own bucket and keys; None: the worker's.
    credentials: SecretStore | None = None
    #: The engine's name of an input -> the name that this job used, for errors.
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_job(
    job: Mapping[str, Any],
    *,
    limits: JobLimits = DEFAULT_LIMITS,
    job_defaults: JobDefaults = JOB_DEFAULTS,
    folder: Path | None = None,
) -> ParsedJob:
    """Check `job` against the schema, fill in its defaults and build the engine's request.

    The request carries the `limits`, because some can be checked only with the composed config and the plan. Relative
    paths are relative to `folder`, if there is one. Opens no address and composes no config. Raises RequestError with
    the caller's name of the field, a hint and a code; its text never quotes anything from `s3Config`.
    """
    document = _normalise(job)
    validate(document, limits)
    inputs: dict[str, Any] = document["input"]
    values = {**input_defaults(limits, job_defaults, inputs), **inputs}
    action: Action = "health" if values["health_check"] else values["action"]
    output = values.get("output", {})
    fields = _fields(inputs)
    return ParsedJob(
        id=document.get("id", ""),
        action=action,
        request=_request(values, inputs, fields, folder, limits) if action in ("generate", "plan") else None,
        sink=output.get("sink"),
        filename=output.get("filename"),
        credentials=SecretStore(document[SECRET]) if SECRET in document else None,
        fields=fields,
    )


def caller_field(name: str, fields: Mapping[str, str] = FIELDS) -> str:
    """Return the job's field for the engine's input `name`; a name without a field is returned unchanged."""
    if name.startswith("overrides (") and (key := name[len("overrides (") : -1]) in fields:
        return fields[key]
    longest = max(
        (part for part in fields if name == part or name.startswith((f"{part}.", f"{part}["))), key=len, default=""
    )
    return fields[longest] + name.removeprefix(longest) if longest else name.removeprefix("request.")


def _normalise(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return `job` without null fields and an empty s3Config; raise RequestError for fields at the wrong level."""
    if not isinstance(job, Mapping):
        raise RequestError(
            f"the job is {_describe(job)}, not an object", field="job", hint='send {"input": {...}}', code="wrong_type"
        )
    if len(job) > MOST_ENTRIES:
        raise RequestError(
            f"the job has {len(job)} fields", field="job", hint='send {"input": {...}}', code="out_of_range"
        )
    document = {name: value for name, value in job.items() if value is not None and (name, value) != (SECRET, {})}
    # The platform may add fields that this engine does not know, so only fields of `input` are rejected here. `output`
    # is a field of the platform, too, in its answers.
    inside = {*input_fields()} - {"output"}
    for name in document:
        if name in inside:
            raise unknown_field(str(name), (), field=str(name), hint='it belongs inside "input"')
        if name != SECRET and str(name).lower().replace("_", "") == SECRET.lower():
            raise unknown_field(str(name), (SECRET,), field=str(name))
    for name in ("id", "input", SECRET):
        check_bounds(
            document.get(name), field="" if name == "input" and isinstance(document.get(name), Mapping) else name
        )
    if isinstance(inputs := document.get("input"), Mapping):
        document["input"] = {name: value for name, value in inputs.items() if value is not None}
    return document


def _describe(value: object) -> str:
    is_json = isinstance(value, str) and value.lstrip()[:1] in ("{", "[")
    return "a string that holds JSON" if is_json else quote_value(value)


def _request(
    values: Mapping[str, Any],
    inputs: Mapping[str, Any],
    fields: Mapping[str, str],
    folder: Path | None,
    limits: JobLimits,
) -> Request:
    return Request(
        prompt=values.get("prompt", ""),
        image=_address(values["reference_image"], "reference_image", folder) if "reference_image" in values else "",
        prompts=tuple(_cue(entry, entry["text"]) for entry in values.get("prompts", ())),
        images=tuple(
            _cue(entry, _address(entry["image"], f"reference_images[{index}].image", folder))
            for index, entry in enumerate(values.get("reference_images", ()))
        ),
        video=_address(values["reference_video"], "reference_video", folder) if "reference_video" in values else "",
        speakers=() if "script" in values or "voices" in values else _speakers(values, fields, folder),
        script=values.get("script", ""),
        voices=_address(values["voices"], "voices", folder) if "voices" in values else "",
        people=int(values["people"]),
        boxes=_boxes(values.get("boxes", ())),
        soundtrack=_address(values["soundtrack"], "soundtrack", folder) if "soundtrack" in values else "",
        negative_prompt=values.get("negative_prompt"),
        seed=int(values["seed"]),
        frames=None if values["num_frames"] == "auto" else int(values["num_frames"]),
        fps=float(values["fps"]) if "fps" in values else None,
        audio_type=values["audio_type"],
        timing=values["timing"],
        fit=values["fit"],
        filename=values.get("output", {}).get("filename"),
        live=values.get("live"),
        preview=values.get("preview"),
        overrides=_overrides(values, inputs),
        budget=Budget(**asdict(limits)),
    )


def _address(address: str, field: str, folder: Path | None) -> str:
    return as_address(address, field=field, folder=folder)


def _cue(entry: Mapping[str, Any], value: str) -> Cue:
    # A schema's integer may be written as 100.0.
    frame = entry.get("from_frame")
    return Cue(value, float(entry["from"]) if "from" in entry else None, None if frame is None else int(frame))


def _speakers(values: Mapping[str, Any], fields: Mapping[str, str], folder: Path | None) -> tuple[Speaker, ...]:
    # The rules are those of a speakers file, whichever fields a job uses.
    entries = values.get("speakers") or [
        {"audio": values[f"audio_{number}"], "region": values.get(f"region_{number}", "auto")}
        for number in (1, 2)
        if f"audio_{number}" in values
    ]
    try:
        speakers = parse_speakers(entries)
    except RequestError as error:
        raise RequestError(
            error.what, field=caller_field(error.field, fields), hint=error.hint, code="bad_value"
        ) from None

    def address(text: str, name: str) -> str:
        return as_address(text, field=caller_field(f"request.speakers{name}", fields), folder=folder)

    return tuple(_inline(speaker, f"[{index}]", address) for index, speaker in enumerate(speakers))


def _inline(speaker: Speaker, where: str, address: Callable[[str, str], str]) -> Speaker:
    audio, mask = speaker.audio, speaker.region.mask
    return replace(
        speaker,
        audio=None if audio is None else address(audio, f"{where}.audio"),
        region=speaker.region if mask is None else Region(mask=address(mask, f"{where}.region.mask")),
    )


def _boxes(boxes: Sequence[Any]) -> tuple[Box, ...]:
    try:
        return parse_boxes(boxes)
    except RequestError as error:
        raise RequestError(error.what, field=caller_field(error.field), hint=error.hint, code="bad_value") from None


def _overrides(values: Mapping[str, Any], inputs: Mapping[str, Any]) -> tuple[str, ...]:
    turbo = values["turbo"]
    # The steps and scales of a turbo bundle belong together, so the API's defaults do not replace them.
    chosen = inputs if turbo else values
    return (
        f"sampler={'turbo' if turbo else 'standard'}",
        *(f"{key}={_number(chosen[name])}" for name, key in _KEYS.items() if name in chosen),
        *values.get("overrides", ()),
    )


def _number(value: Any) -> str:
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _fields(inputs: Mapping[str, Any]) -> dict[str, str]:
    fields = dict(FIELDS)
    if "speakers" not in inputs:
        for number in (1, 2):
            fields[f"request.speakers[{number - 1}].audio"] = f"audio_{number}"
            fields[f"request.speakers[{number - 1}].region"] = f"region_{number}"
    # If the job overrides a key by itself, errors about the key do not name the field.
    own = {override.partition("=")[0] for override in inputs.get("overrides", ())}
    return fields | {key: name for name, key in _KEYS.items() if key not in own}
