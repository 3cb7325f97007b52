"""The schema of a model preset: the model's weights and what depends on them."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from engine.config.ranges import BLEND, COEFFICIENTS, FPS, SCALE, SHIFT, STEPS, STYLE, WINDOW, within


@dataclass
class ResolutionConfig:
    """One entry of a model's table of resolutions."""

    #: Nominal height / width -> [height, width] in pixels; the nearest to the source picture's is taken.
    buckets: dict[str, list[int]] = field(default_factory=dict, metadata=within(16, 4096))
    #: Shift of the flow-matching schedule.
    shift: float = field(default=7.0, metadata=SHIFT)
    #: Polynomial of the TeaCache estimate, highest power first; empty: none was measured for this model.
    teacache: list[float] = field(default_factory=list, metadata=COEFFICIENTS)


@dataclass
class AdapterConfig:
    """One LoRA."""

    #: File below the weights' folder, or an absolute path.
    file: str = MISSING
    #: How strongly it is applied; 1: as it was trained.
    scale: float = field(default=1.0, metadata=within(-10, 10))


@dataclass
class BundleConfig:
    """Settings that belong together: how a model is sampled in one mode."""

    #: Sampling steps.
    steps: int = field(default=40, metadata=STEPS)
    #: Shift of the flow-matching schedule.
    shift: float = field(default=7.0, metadata=SHIFT)
    #: Guidance scale of the prompt; 1: none.
    text_scale: float = field(default=5.0, metadata=SCALE)
    #: Guidance scale of the voices; 1: none.
    audio_scale: float = field(default=4.0, metadata=SCALE)
    #: LoRAs that belong to this mode.
    loras: list[AdapterConfig] = field(default_factory=list)


@dataclass
class ContinuationModelConfig:
    """How a model continues a video from window to window."""

    #: "multitalk": motion frames mixed with noise of the step; "infinitetalk": clean motion frames, fixed reference.
    style: str = field(default="multitalk", metadata=STYLE)
    #: Frames of the window before that the next one is given: 4n + 1.
    frames: int = field(default=25, metadata=WINDOW)
    #: Seconds for which style "multitalk" is known to hold a face: for longer videos a plan advises something else.
    #: 15 is what MultiTalk's authors give for theirs.
    multitalk_seconds: float = field(default=15.0, metadata=within(0, 86_400))
    #: Who says so.
    multitalk_seconds_by: str = "README of MeiGen-AI/MultiTalk"
    #: What is advised for longer videos, in the words of the command line.
    instead: str = "model=infinitetalk"
    #: Frames over which a window is eased from the last one that was shown; 0, as in the public implementation: none.
    blend: int = field(default=0, metadata=BLEND)


@dataclass
class ModelConfig:
    """A model preset: its weights and everything that depends on them."""

    #: Name of the model; a video's recipe carries it.
    name: str = MISSING
    #: Folder of the weights on a volume.
    folder: str = MISSING
    #: Whether the weights ship inside the package.
    packaged: bool = False
    #: File of audio weights in Wan's key names, or the end of its path, where it lies beside Wan's own; "": any.
    adapter: str = ""
    #: Command that gets the weights, named when they are missing; "": that of a published preset, where there is one.
    command: str = ""
    #: Published architecture whose sizes a plan takes while the weights are not there (engine/planning/architectures).
    architecture: str = ""
    #: Native frames a second, of the audio features as well.
    fps: float = field(default=25.0, metadata=FPS)
    #: Most frames of one window: 4n + 1.
    window: int = field(default=81, metadata=WINDOW)
    #: Resolutions that the model knows, by name.
    resolutions: dict[str, ResolutionConfig] = field(default_factory=dict)
    #: The one that is taken unless `resolution` names another.
    resolution: str = MISSING
    #: How the model continues a video from window to window.
    continuation: ContinuationModelConfig = field(default_factory=ContinuationModelConfig)
    #: What `sampler.bundle=standard` takes.
    standard: BundleConfig = field(default_factory=BundleConfig)
    #: What `sampler.bundle=turbo` takes.
    turbo: BundleConfig = field(default_factory=BundleConfig)
    #: What is not to be seen, unless the request says so itself.
    negative_prompt: str = ""
