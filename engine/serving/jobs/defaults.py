"""What a worker takes for jobs that do not say: frames, rate, steps and scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.errors import ConfigError
from engine.serving.jobs.schema import LIMITS, Limits, job_schema, shown


@dataclass(frozen=True)
class Habits:
    """What a worker takes for jobs that do not say."""

    #: Frames, or "auto"; a flag of the command line gives a number as text.
    frames: int | str = 100
    #: "job": the API's own rate, steps and scale; "model": the model's, and as many frames as the voices last, as the
    #: command line does.
    of: str = "job"

    def __post_init__(self) -> None:
        """Raise ConfigError for what no job could say."""
        if self.of not in ("job", "model"):
            raise ConfigError(f"{self.of!r} is unknown", field="entrypoint.defaults_of", hint="choose job or model")
        if self.frames != "auto" and not self._whole() >= 1:
            hint = "give a whole number, 1 or more, or auto"
            raise ConfigError(f"{shown(self.frames)} frames", field="entrypoint.num_frames", hint=hint)

    def _whole(self) -> int:
        text = "" if isinstance(self.frames, bool) else str(self.frames)
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 30 else 0

    def num_frames(self, limits: Limits) -> int | Literal["auto"]:
        """Return what a job is given that does not say, within `limits`."""
        return "auto" if self.frames == "auto" or self.of == "model" else min(self._whole(), limits.frames)


#: Of a worker that was told nothing.
HABITS = Habits()


def defaults(
    limits: Limits = LIMITS, habits: Habits = HABITS, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the defaults of the fields of `input` that have one, for a job that names the fields of `given`.

    A video as long as its voices has the model's rate, and no default of its own.
    """
    fields = job_schema(limits)["$defs"]["input"]["properties"]
    found = {name: field["default"] for name, field in fields.items() if "default" in field}
    found["num_frames"] = habits.num_frames(limits)
    if habits.of == "model":
        for name in ("fps", "sampling_steps", "guidance_scale"):
            del found[name]
    if {**found, **(given or {})}["num_frames"] == "auto":
        found.pop("fps", None)
    return found
