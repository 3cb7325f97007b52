"""The config fields that all entrypoints for jobs share: limits, and the default number of frames."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.config import EntrypointConfig, within


@dataclass
class JobsConfig(EntrypointConfig):
    """Limits of jobs, and the default number of frames."""

    num_frames: int | str = field(
        default=100,
        metadata={"help": "default number of frames of a job, or auto: as long as its voices (100)", "word": "N"},
    )
    max_frames: int = field(
        default=201, metadata={"help": "most frames that a job may ask for (201)", "word": "N"} | within(1, 90_000)
    )
    max_steps: int = field(
        default=100, metadata={"help": "most steps that a job may ask for (100)", "word": "N"} | within(2, 1000)
    )
    max_seconds: float = field(
        default=600.0,
        metadata={"help": "most seconds of a video that is as long as its voices (600)", "word": "S"} | within(1, 3600),
    )
    max_forwards: int = field(
        default=50_000,
        metadata={"help": "most forward passes of a job, windows x steps x guidance passes (50000)", "word": "N"}
        | within(1, 10_000_000),
    )
