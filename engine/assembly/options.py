"""Config and plan -> options of the stages, once per request: a stage never gets a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.assembly.sampling import Sampling
from engine.config import Config
from engine.data import DecodeOptions, EncodeOptions, Inputs, Plan, Request
from engine.stages.write import VideoOptions, Writer


@dataclass(frozen=True)
class StageOptions:
    """The options of all stages that have any."""

    encode: EncodeOptions
    decode: DecodeOptions
    video: VideoOptions
    #: Whether a window's frames are encoded while the next window is computed.
    overlap: bool


def make_options(config: Config, plan: Plan, sampling: Sampling, device: str) -> StageOptions:
    """Return the stage options from a request's config and plan; `device` is "cpu" or "cuda"."""
    continuation, video, overlap = config.continuation, config.video, config.memory.overlap
    return StageOptions(
        EncodeOptions(
            branches=sampling.guidance.branches,
            style=continuation.style,
            fps=plan.generated_fps,
            native_fps=config.model.fps,
        ),
        DecodeOptions(
            motion_frames=continuation.frames,
            color_strength=continuation.color_strength,
            fps=plan.generated_fps,
            blend=continuation.blend,
        ),
        VideoOptions(crf=video.crf, preset=video.preset, audio_bitrate=video.audio_bitrate),
        # On a CPU the network and the encoder would share the cores.
        overlap=device == "cuda" if overlap is None else overlap,
    )


def make_writer(
    request: Request, plan: Plan, inputs: Inputs, options: StageOptions, provenance: Mapping[str, Any], folder: Path
) -> Writer:
    """Return the writer of a request's video, in `folder`. Raises ConfigError and SinkError."""
    return Writer(
        folder / "video.mp4",
        plan.canvas.target,
        plan.fps,
        inputs.sound,
        options.video,
        metadata=provenance,
        filename=request.filename,
    )
