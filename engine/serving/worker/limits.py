"""The config fields that all entrypoints for jobs share: limits, and the default number of frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.config import EntrypointConfig, one_of, within

if TYPE_CHECKING:
    from engine.serving.worker.handler import Terms


@dataclass
class JobsConfig(EntrypointConfig):
    """Limits of jobs, and the default number of frames."""

    num_frames: int | str = field(
        default=100,
        metadata={"help": "frames of a job that does not set them; auto: as long as its voices (100)", "word": "N"},
    )
    max_frames: int = field(
        default=201, metadata={"help": "maximum frames of a job (201)", "word": "N"} | within(1, 90_000)
    )
    max_steps: int = field(
        default=100, metadata={"help": "maximum steps of a job (100)", "word": "N"} | within(2, 1000)
    )
    max_seconds: float = field(
        default=600.0,
        metadata={"help": "maximum seconds of a video that is as long as its voices (600)", "word": "S"}
        | within(1, 3600),
    )
    max_forwards: int = field(
        default=50_000,
        metadata={"help": "maximum forwards of a job: windows x steps x branches (50000)", "word": "N"}
        | within(1, 10_000_000),
    )

    #: Defaults of jobs: "job": the API's own frame rate, steps and scale; "model": those of the model, and as many
    #: frames as the voices last. A model that was distilled for its own steps and scales sets "model".
    defaults_of: str = field(
        default="${oc.select:model.defaults_of,job}", metadata={"flag": False} | one_of("job", "model")
    )

    def terms(self, **more: Any) -> Terms:
        """Return what jobs may ask for; `more` are fields of `Terms`. Raises ConfigError for impossible limits."""
        # The handler imports asyncio: only an entrypoint that is chosen pays for it.
        from engine.serving.jobs.defaults import JobDefaults
        from engine.serving.jobs.schema import JobLimits
        from engine.serving.worker.handler import Terms

        limits = JobLimits(self.max_frames, self.max_steps, self.max_seconds, self.max_forwards)
        return Terms(limits=limits, job_defaults=JobDefaults(self.num_frames, self.defaults_of), **more)
