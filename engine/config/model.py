"""The schema of a model preset: the model's weights and what depends on them."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from engine.config.ranges import (
    BLEND,
    COEFFICIENTS,
    CORRELATION,
    FIGURE,
    FPS,
    MAGNITUDES,
    SCALE,
    SHIFT,
    STEPS,
    STYLE,
    WINDOW,
    one_of,
    within,
)


@dataclass
class ResolutionConfig:
    """One entry of a model's table of resolutions."""

    #: Nominal height / width -> [height, width] in pixels; the entry nearest to the picture's ratio is used.
    buckets: dict[str, list[int]] = field(default_factory=dict, metadata=within(16, 4096))
    #: Shift of the flow-matching schedule.
    shift: float = field(default=7.0, metadata=SHIFT)
    #: Polynomial of the TeaCache estimate, highest power first; empty: not measured for this model.
    teacache: list[float] = field(default_factory=list, metadata=COEFFICIENTS)
    #: Magnitudes of the blocks' residual for MagCache, at equal distances of time from 1000 down to 0; empty: not
    #: measured for this model.
    magcache: list[float] = field(default_factory=list, metadata=MAGNITUDES)


@dataclass
class AdapterConfig:
    """One LoRA."""

    #: File in the weights' folder, or an absolute path.
    file: str = MISSING
    #: Strength of the LoRA; 1: as trained.
    scale: float = field(default=1.0, metadata=within(-10, 10))


@dataclass
class BundleConfig:
    """Settings that belong together: how to sample a model in one mode."""

    #: Number of sampling steps.
    steps: int = field(default=40, metadata=STEPS)
    #: Shift of the flow-matching schedule.
    shift: float = field(default=7.0, metadata=SHIFT)
    #: Guidance scale of the prompt; 1: no guidance.
    text_scale: float = field(default=5.0, metadata=SCALE)
    #: Guidance scale of the voices; 1: no guidance.
    audio_scale: float = field(default=4.0, metadata=SCALE)
    #: Name of the sampler.
    solver: str = "euler"
    #: LoRAs that belong to this mode.
    loras: list[AdapterConfig] = field(default_factory=list)


@dataclass
class ContinuationModelConfig:
    """How a model continues a video from one window to the next."""

    #: "multitalk": motion frames with the current step's noise; "infinitetalk": clean motion frames and the picture;
    #: "longcat": clean motion frames that see no noise, and the picture as a frame of its own.
    style: str = field(default="multitalk", metadata=STYLE)
    #: Motion frames: last frames of a window that the next one gets; 4n + 1.
    frames: int = field(default=25, metadata=WINDOW)
    #: Maximum seconds for which style "multitalk" keeps a face; for longer videos a plan suggests an alternative.
    #: 15 is the figure of MultiTalk's authors.
    multitalk_seconds: float = field(default=15.0, metadata=within(0, 86_400))
    #: Source of that figure.
    multitalk_seconds_by: str = "README of MeiGen-AI/MultiTalk"
    #: The alternative for longer videos, as an override.
    instead: str = "model=infinitetalk"
    #: Number of frames over which a window is blended with the frame before it; 0, as in the public code: no blending.
    blend: int = field(default=0, metadata=BLEND)
    #: How strongly each window's colours are matched to the picture's, 0 (off) to 1.
    color_strength: float = field(default=1.0, metadata=within(0, 1))


@dataclass
class ReportModelConfig:
    """Limits of a report's figures for a model; null: that measure does not apply to it (docs/reports.md).

    The defaults are wide: they find damage of any video, and were not measured with weights of 14B.
    """

    #: Most that a window's first frame may differ from the last one before, in parts of the usual change of a frame.
    seam: float | None = field(default=8.0, metadata=FIGURE)
    #: Least contrast of fine lines, in parts of the picture's.
    sharpness: float | None = field(default=0.3, metadata=FIGURE)
    #: Most contrast of fine lines, in parts of the picture's: noise has more than any picture.
    noise: float | None = field(default=2.0, metadata=FIGURE)
    #: Least contrast of fine lines, in parts of the first window's.
    sharpness_kept: float | None = field(default=0.6, metadata=FIGURE)
    #: Most distance of a face from the picture's (0: the same, 1: another person). Only for drawn people.
    identity: float | None = field(default=None, metadata=FIGURE)
    #: Most growth of that distance since the first window. Only for drawn people.
    identity_grown: float | None = field(default=None, metadata=FIGURE)
    #: Most distance of the colours of 64 parts from the picture's, CIE Lab.
    colour: float | None = field(default=25.0, metadata=FIGURE)
    #: Most distance of these colours from the first window's, CIE Lab.
    colour_drift: float | None = field(default=20.0, metadata=FIGURE)
    #: Most seconds of speech without any movement.
    still: float | None = field(default=1.0, metadata=FIGURE)
    #: Most frames with almost no contrast, such as black ones.
    blank: float | None = field(default=0.0, metadata=FIGURE)
    #: Least correlation of a mouth with its voice, -1 to 1. Only for drawn people.
    mouth: float | None = field(default=None, metadata=CORRELATION)


@dataclass
class MadeForConfig:
    """What a distilled model was made for; everything else is refused. The defaults refuse nothing."""

    #: Names of samplers; empty: all.
    samplers: list[str] = field(default_factory=list)
    #: Numbers of steps; empty: all.
    steps: list[int] = field(default_factory=list, metadata=STEPS)
    #: Whether it can be guided: with scales other than 1, and by a negative prompt.
    guidance: bool = True
    #: Whether forwards can be skipped by a step cache.
    caches: bool = True
    #: Largest number of speakers; 0: any.
    speakers: int = field(default=0, metadata=within(0, 16))


@dataclass
class ModelConfig:
    """A model preset: its weights and everything that depends on them."""

    #: Name of the model; part of a video's provenance.
    name: str = MISSING
    #: Folder of the weights on a volume.
    folder: str = MISSING
    #: Whether the weights ship inside the package.
    packaged: bool = False
    #: File of audio weights in Wan's key names, or the end of its path, if there are several; "": any.
    adapter: str = ""
    #: Command that downloads the weights, shown if they are missing; "": that of the weights preset, if there is one.
    command: str = ""
    #: Published architecture whose sizes a plan uses if the weights are missing (engine/planning/architectures).
    architecture: str = ""
    #: Native frames per second, also of the audio features.
    fps: float = field(default=25.0, metadata=FPS)
    #: Maximum frames of one window: 4n + 1.
    window: int = field(default=81, metadata=WINDOW)
    #: Whether every window has the maximum number of frames, the last one too, whose surplus is dropped: a distilled
    #: model may never have seen a shorter one.
    whole_windows: bool = False
    #: The default of `vae.decode_dtype`.
    decode_dtype: str = field(default="auto", metadata=one_of("auto", "float32", "bfloat16"))
    #: The model's resolutions, by name.
    resolutions: dict[str, ResolutionConfig] = field(default_factory=dict)
    #: The default of `resolution`.
    resolution: str = MISSING
    #: How the model continues a video from one window to the next.
    continuation: ContinuationModelConfig = field(default_factory=ContinuationModelConfig)
    #: Limits of a report's figures.
    report: ReportModelConfig = field(default_factory=ReportModelConfig)
    #: The values for `sampler.bundle=standard`.
    standard: BundleConfig = field(default_factory=BundleConfig)
    #: The values for `sampler.bundle=turbo`.
    turbo: BundleConfig = field(default_factory=BundleConfig)
    #: The values for `sampler.bundle=distilled`, a LoRA for fewer steps than turbo's; null: the model has none.
    distilled: BundleConfig | None = None
    #: What the model was made for.
    made_for: MadeForConfig = field(default_factory=MadeForConfig)
    #: Defaults of a worker's jobs: "job": the API's own steps and scale; "model": those of the model.
    defaults_of: str = field(default="job", metadata=one_of("job", "model"))
    #: What the video should not show, unless the request sets its own text.
    negative_prompt: str = ""

    @property
    def bundles(self) -> dict[str, BundleConfig]:
        """The bundles that the model has, by name."""
        bundles = {"standard": self.standard, "turbo": self.turbo, "distilled": self.distilled}
        return {name: bundle for name, bundle in bundles.items() if bundle is not None}
