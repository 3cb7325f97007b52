"""A job as the platform hands it over -> Job: what is asked of the worker, checked and in the engine's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from engine.data import Region, Request, Speaker
from engine.data.budget import Budget
from engine.errors import RequestError
from engine.serving.jobs.defaults import HABITS, Habits, defaults
from engine.serving.jobs.document_bounds import MOST_ENTRIES, check_bounds
from engine.serving.jobs.inline import as_address
from engine.serving.jobs.schema import LIMITS, SECRET, Limits, input_fields, shown, unknown, validate
from engine.serving.jobs.secrets import Sealed
from engine.serving.jobs.speakers import parse_speakers

Action = Literal["generate", "plan", "health", "capabilities", "selftest"]

#: The field of a job -> the key of the config that it sets.
_KEYS = {
    "resolution": "resolution",
    "sampling_steps": "sampler.steps",
    "guidance_scale": "guidance.text_scale",
    "audio_guidance_scale": "guidance.audio_scale",
}

#: What the engine calls an input -> what every job calls it.
FIELDS = {
    "request.image": "reference_image",
    "request.frames": "num_frames",
    "request.filename": "output.filename",
    "request.store": SECRET,
    "request.sink": "output.sink",
    "sink.limit": "output.sink",
}


@dataclass(frozen=True)
class Job:
    """One job. Its repr shows neither media nor keys."""

    #: "" where the platform gave none.
    id: str
    action: Action
    #: None for the actions that need no media: health, capabilities and selftest.
    request: Request | None = field(default=None, repr=False)
    #: Name of the sink that the job asks for; None: the worker's choice.
    sink: str | None = None
    #: File name for the sink, as in the request; None: the sink's choice.
    filename: str | None = None
    #: The job's own bucket and keys; None: the worker's.
    credentials: Sealed | None = None
    #: What the engine calls an input -> what this job called it, for errors.
    fields: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_job(
    job: Mapping[str, Any], *, limits: Limits = LIMITS, habits: Habits = HABITS, folder: Path | None = None
) -> Job:
    """Check `job` against the schema, fill in its defaults and put the engine's request together.

    `limits` go along with the request, for what only the composed config and the plan can say. Relative paths count
    from `folder`, if there is one. Opens no address and composes no config. Raises RequestError with the field as the
    caller spelled it, a hint and a code; no text of it quotes anything from `s3Config`.
    """
    plain = _plain(job)
    validate(plain, limits)
    given: dict[str, Any] = plain["input"]
    values = {**defaults(limits, habits, given), **given}
    action: Action = "health" if values["health_check"] else values["action"]
    output = values.get("output", {})
    fields = _fields(given)
    return Job(
        id=plain.get("id", ""),
        action=action,
        request=_request(values, given, fields, folder, limits) if action in ("generate", "plan") else None,
        sink=output.get("sink"),
        filename=output.get("filename"),
        credentials=Sealed(plain[SECRET]) if SECRET in plain else None,
        fields=fields,
    )


def spell(name: str, fields: Mapping[str, str] = FIELDS) -> str:
    """Return what a job calls the input that the engine calls `name`; what no job names is returned as it is."""
    if name.startswith("overrides (") and (key := name[len("overrides (") : -1]) in fields:
        return fields[key]
    longest = max((part for part in fields if name == part or name.startswith(f"{part}.")), key=len, default="")
    return fields[longest] + name.removeprefix(longest) if longest else name.removeprefix("request.")


def _plain(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return `job` without what is null or an empty bucket; refuse a job whose fields stand at the wrong level."""
    if not isinstance(job, Mapping):
        raise RequestError(
            f"the job is {_said(job)}, not an object", field="job", hint='send {"input": {...}}', code="wrong_type"
        )
    if len(job) > MOST_ENTRIES:
        raise RequestError(
            f"the job has {len(job)} fields", field="job", hint='send {"input": {...}}', code="out_of_range"
        )
    plain = {name: value for name, value in job.items() if value is not None and (name, value) != (SECRET, {})}
    # The platform's own fields are not ours to know, but these are not the platform's; `output` is, in its answers.
    inside = {*input_fields()} - {"output"}
    for name in plain:
        if name in inside:
            raise unknown(str(name), (), field=str(name), hint='it belongs inside "input"')
        if name != SECRET and str(name).lower().replace("_", "") == SECRET.lower():
            raise unknown(str(name), (SECRET,), field=str(name))
    for name in ("id", "input", SECRET):
        check_bounds(plain.get(name), field="" if name == "input" and isinstance(plain.get(name), Mapping) else name)
    if isinstance(given := plain.get("input"), Mapping):
        plain["input"] = {name: value for name, value in given.items() if value is not None}
    return plain


def _said(value: object) -> str:
    return "JSON text" if isinstance(value, str) and value.lstrip()[:1] in ("{", "[") else shown(value)


def _request(
    values: Mapping[str, Any], given: Mapping[str, Any], fields: Mapping[str, str], folder: Path | None, limits: Limits
) -> Request:
    return Request(
        prompt=values["prompt"],
        image=as_address(values["reference_image"], field="reference_image", folder=folder),
        speakers=_speakers(values, fields, folder),
        negative_prompt=values.get("negative_prompt"),
        seed=int(values["seed"]),
        frames=None if values["num_frames"] == "auto" else int(values["num_frames"]),
        fps=float(values["fps"]) if "fps" in values else None,
        audio_type=values["audio_type"],
        timing=values["timing"],
        fit=values["fit"],
        filename=values.get("output", {}).get("filename"),
        overrides=_overrides(values, given),
        budget=Budget(**asdict(limits)),
    )


def _speakers(values: Mapping[str, Any], fields: Mapping[str, str], folder: Path | None) -> tuple[Speaker, ...]:
    # The rules for who speaks where are those of a speakers file, whichever way a job says it.
    entries = values.get("speakers") or [
        {"audio": values[f"audio_{number}"], "region": values.get(f"region_{number}", "auto")}
        for number in (1, 2)
        if f"audio_{number}" in values
    ]
    try:
        speakers = parse_speakers(entries)
    except RequestError as error:
        raise RequestError(
            error.what, field=spell(f"request.{error.field}", fields), hint=error.hint, code="bad_value"
        ) from None

    def address(text: str, name: str) -> str:
        return as_address(text, field=spell(f"request.speakers{name}", fields), folder=folder)

    return tuple(_inline(speaker, f"[{index}]", address) for index, speaker in enumerate(speakers))


def _inline(speaker: Speaker, where: str, address: Callable[[str, str], str]) -> Speaker:
    audio, mask = speaker.audio, speaker.region.mask
    return replace(
        speaker,
        audio=None if audio is None else address(audio, f"{where}.audio"),
        region=speaker.region if mask is None else Region(mask=address(mask, f"{where}.region.mask")),
    )


def _overrides(values: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[str, ...]:
    turbo = values["turbo"]
    # A turbo bundle's steps and scales belong together, so the API's own defaults stay out of its way.
    chosen = given if turbo else values
    return (
        f"sampler={'turbo' if turbo else 'standard'}",
        *(f"{key}={_number(chosen[name])}" for name, key in _KEYS.items() if name in chosen),
        *values.get("overrides", ()),
    )


def _number(value: Any) -> str:
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _fields(given: Mapping[str, Any]) -> dict[str, str]:
    fields = dict(FIELDS)
    if "speakers" not in given:
        for number in (1, 2):
            fields[f"request.speakers[{number - 1}].audio"] = f"audio_{number}"
            fields[f"request.speakers[{number - 1}].region"] = f"region_{number}"
    # A key that the job overrides in so many words is not about the field.
    own = {override.partition("=")[0] for override in given.get("overrides", ())}
    return fields | {key: name for name, key in _KEYS.items() if key not in own}
