"""The defaults of a job's fields: frames, frame rate, steps and scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import ConfigError
from engine.serving.jobs.schema import DEFAULT_LIMITS, JobLimits, job_schema, quote_value


@dataclass(frozen=True)
class JobDefaults:
    """A worker's defaults for fields that a job leaves out."""

    #: Number of frames, or "auto"; a command-line flag passes the number as text.
    frames: int | str = 100
    #: "job": the API's own frame rate, steps and scale. "model": those of the model, and as many frames as the voices
    #: last, as on the command line.
    source: str = "job"

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no job could have."""
        if self.source not in ("job", "model"):
            raise ConfigError(f"{self.source!r} is unknown", field="entrypoint.defaults_of", hint="choose job or model")
        if self.frames != "auto" and not self._count() >= 1:
            hint = "give a whole number, 1 or more, or auto"
            what = f"{quote_value(self.frames)} is not a number of frames"
            raise ConfigError(what, field="entrypoint.num_frames", hint=hint)

    def _count(self) -> int:
        text = "" if isinstance(self.frames, bool) else str(self.frames)
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 30 else 0

    def num_frames(self, limits: JobLimits) -> int | Literal["auto"]:
        """Return the default of `num_frames`, at most what `limits` allow."""
        return "auto" if self.frames == "auto" or self.source == "model" else min(self._count(), limits.frames)


#: The defaults of a worker without options.
JOB_DEFAULTS = JobDefaults()


def input_defaults(
    limits: JobLimits = DEFAULT_LIMITS,
    job_defaults: JobDefaults = JOB_DEFAULTS,
    inputs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the defaults of the fields of `input` for a job that sets the fields `inputs`.

    A video as long as its voices has no default of `fps`: it gets the model's frame rate.
    """
    fields = job_schema(limits)["$defs"]["input"]["properties"]
    values = {name: field["default"] for name, field in fields.items() if "default" in field}
    values["num_frames"] = job_defaults.num_frames(limits)
    if job_defaults.source == "model":
        for name in ("fps", "sampling_steps", "guidance_scale"):
            del values[name]
    if {**values, **(inputs or {})}["num_frames"] == "auto":
        values.pop("fps", None)
    return values
