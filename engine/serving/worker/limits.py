"""The config fields that all entrypoints for jobs share: limits, and the default number of frames."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.config import EntrypointConfig, within

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

    def terms(self, *, defaults_of: str = "job", **more: Any) -> Terms:
        """Return what jobs may ask for; `more` are fields of `Terms`. Raises ConfigError for impossible limits."""
        # The handler imports asyncio: only an entrypoint that is chosen pays for it.
        from engine.serving.jobs.defaults import JobDefaults
        from engine.serving.jobs.schema import JobLimits
        from engine.serving.worker.handler import Terms

        limits = JobLimits(self.max_frames, self.max_steps, self.max_seconds, self.max_forwards)
        return Terms(limits=limits, job_defaults=JobDefaults(self.num_frames, defaults_of), **more)
