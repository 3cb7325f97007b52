"""The schema of the composed config, and which keys a request may override. Presets in conf/ fill it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import II, MISSING

from engine.config.access import AccessConfig as AccessConfig  # re-exported, like the names below
from engine.config.component import ComponentConfig as ComponentConfig
from engine.config.component import FamilyConfig as FamilyConfig
from engine.config.device import CompileConfig as CompileConfig
from engine.config.device import MemoryConfig as MemoryConfig
from engine.config.device import ParallelConfig as ParallelConfig
from engine.config.device import VaeConfig as VaeConfig
from engine.config.live import LiveConfig as LiveConfig
from engine.config.model import AdapterConfig as AdapterConfig
from engine.config.model import BundleConfig as BundleConfig
from engine.config.model import ContinuationModelConfig as ContinuationModelConfig
from engine.config.model import MadeForConfig as MadeForConfig
from engine.config.model import ModelConfig as ModelConfig
from engine.config.model import ReportModelConfig as ReportModelConfig
from engine.config.model import ResolutionConfig as ResolutionConfig
from engine.config.ranges import BLEND, BUNDLE, FPS, SCALE, SHIFT, STEPS, STYLE, WINDOW
from engine.config.ranges import SECRET as SECRET
from engine.config.ranges import one_of as one_of
from engine.config.ranges import within as within
from engine.config.report import ReportConfig as ReportConfig
from engine.config.report import RetakeConfig as RetakeConfig
from engine.config.resume import ResumeConfig as ResumeConfig
from engine.config.resume import with_states
from engine.config.video import DubConfig as DubConfig
from engine.config.video import VideoConfig as VideoConfig
from engine.config.voices import DiariserConfig as DiariserConfig
from engine.config.voices import SpeechConfig as SpeechConfig
from engine.errors import ConfigError

# --- groups of the engine itself --------------------------------------------------------------------------------------


@dataclass
class QuantConfig(ComponentConfig):
    """How the transformer's weights are kept in memory: "none", "int8", or as a quantised file stores them."""

    #: The way: a quantisation that is made while loading, or a preset's name.
    name: str = "none"
    #: The quantised file, in the weights' folder, if there are several.
    file: str | None = None

    @property
    def form(self) -> str:
        """The form of the files that are read: `name`, unless the quantisation reads files of another one."""
        return self.name


@dataclass
class DynamicQuantConfig(QuantConfig):
    """Base of quantisations that multiply in 8 bits: activations are quantised row by row while the network runs."""

    #: Files that are read: "none", full weights, which are quantised while they are loaded; or a published file's
    #: quant, whose stored values are multiplied as they are.
    stored: str = "none"
    #: Layers of the transformer's blocks that are not quantised, as parts of their names, such as "audio_attn" or
    #: "blocks.0.". With a published file their weights stay as stored, but they multiply in the model's dtype.
    keep: list[str] = field(default_factory=list)
    #: Whether the text encoder is quantised, too.
    text_encoder: bool = True

    @property
    def form(self) -> str:
        """See QuantConfig."""
        return self.name if self.stored == "none" else self.stored


@dataclass
class LoraConfig:
    """How LoRAs are applied; fixed when the engine starts."""

    #: "runtime": added during each forward, so that each request can turn it on or off; "merged": into the weights.
    mode: str = field(default="runtime", metadata=one_of("runtime", "merged"))
    #: LoRAs in addition to those of the sampler's bundle.
    extra: list[AdapterConfig] = field(default_factory=list)


@dataclass
class ContinuationConfig:
    """How a window continues the one before it."""

    #: "multitalk": motion frames with the current step's noise; "infinitetalk": clean motion frames and the picture;
    #: "longcat": clean motion frames that see no noise, and the picture as a frame of its own.
    style: str = field(default=II("model.continuation.style"), metadata=STYLE)
    #: Motion frames: last frames of a window that the next one gets; 4n + 1, at most half of a window.
    frames: int = field(default=II("model.continuation.frames"), metadata=WINDOW)
    #: Number of frames over which the start of a window is blended with the last frame before it; 0: no blending.
    blend: int = field(default=II("model.continuation.blend"), metadata=BLEND)
    #: How strongly each window's colours are matched to the picture's, 0 (off) to 1.
    color_strength: float = field(default=II("model.continuation.color_strength"), metadata=within(0, 1))


def _request_field(default: Any, about: str, word: str, allowed: Mapping[str, Any] | None = None) -> Any:
    return field(default=default, metadata={"help": about, "word": word, **(allowed or {})})


@dataclass
class RequestConfig:
    """The request of `generate`; each field is a flag of the command line, in this order."""

    image: str | None = _request_field(None, "the picture: a path or an address", "FILE")
    video: str | None = _request_field(
        None, "a source video in place of the picture: its people speak anew (see docs/dubbing.md)", "FILE"
    )
    audio: list[str] = field(
        default_factory=list,
        metadata={
            "word": "FILE",
            "help": "a voice; repeat it for each person, from left to right. 'silence' is a person who says nothing; "
            "FILE#left, FILE#track=2 or FILE#start=3,duration=10,delay=1 takes a part of a file",
        },
    )
    script: str | None = _request_field(
        None, "a text file: who says what; replaces --audio and --speakers (see docs/dialogue.md)", "FILE"
    )
    voices: str | None = _request_field(
        None, "one recording of several people; replaces --audio and --speakers (see docs/voices.md)", "FILE"
    )
    people: int = _request_field(2, "number of people in --voices, from left to right (2)", "N")
    boxes: str | None = _request_field(
        None, "where the people of --voices are, as they first speak: [[0,0,0.5,1],[0.5,0,1,1]]", "JSON"
    )
    keep_voices: str | None = _request_field(None, "keep the voices that are made of --script or --voices", "FOLDER")
    soundtrack: str | None = _request_field(
        None, "what is heard instead of the voices, which only move the lips (see docs/voices.md)", "FILE"
    )
    prompt: str | None = _request_field(None, "what the video shows", "TEXT")
    prompts: str | None = _request_field(
        None, "YAML or JSON: prompts by time; replaces --prompt (see docs/timeline.md)", "FILE"
    )
    images: str | None = _request_field(
        None, "YAML or JSON: reference pictures by time; replaces --image (see docs/timeline.md)", "FILE"
    )
    negative_prompt: str | None = _request_field(None, "what the video should not show (the model's own)", "TEXT")
    frames: int | str | None = _request_field(
        None, "number of frames; auto: as long as the voices (auto)", "N|auto", within(1, 90_000)
    )
    fps: float | None = _request_field(None, "frames per second, 1 to 60 (the model's own)", "F", FPS)
    seed: int = _request_field(42, "seed of the noise, 0 to 2**63 - 1; -1: random (42)", "S", within(-1, 2**63 - 1))
    speakers: str | None = _request_field(
        None, "YAML or JSON: who speaks where; replaces --audio (see docs/cli.md)", "FILE"
    )
    audio_type: str = _request_field(
        "para", "para: all voices start at once; add: one after the other (para)", "para|add", one_of("para", "add")
    )
    timing: str = _request_field(
        "direct",
        "direct: frames at their own times; native: at the model's rate, then the nearest are selected (direct)",
        "direct|native",
        one_of("direct", "native"),
    )
    fit: str = _request_field(
        "crop", "crop: cut the picture to the model's shape; pad: add bars (crop)", "crop|pad", one_of("crop", "pad")
    )
    #: Name of the video file; the flag is --output.
    filename: str | None = None


# --- kinds of component -----------------------------------------------------------------------------------------------


@dataclass
class SamplerConfig(ComponentConfig):
    """The base of every sampler's config. Defaults of steps and shift come from the model's bundle."""

    #: "standard", "turbo" or "distilled": the model's bundle that provides the defaults.
    bundle: str = field(default="standard", metadata=BUNDLE)
    #: Number of sampling steps.
    steps: int = field(default=II("model.${sampler.bundle}.steps"), metadata=STEPS)
    #: Shift of the flow-matching schedule.
    shift: float = field(default=II("model.${sampler.bundle}.shift"), metadata=SHIFT)

    def check(self) -> None:
        """Raise ConfigError if steps or shift are out of range."""
        if not 1 <= self.steps <= 1000:
            raise ConfigError(f"{self.steps} steps", field="sampler.steps", hint="give 1 to 1000")
        if not self.shift > 0:
            raise ConfigError(f"a shift of {self.shift:g}", field="sampler.shift", hint="give more than 0")


@dataclass
class GuidanceConfig(ComponentConfig):
    """The base of every guidance's config: how strongly prompt and voices guide. Defaults are the model bundle's."""

    #: Scale of the prompt; 1: without guidance by it.
    text_scale: float = field(default=II("model.${sampler.bundle}.text_scale"), metadata=SCALE)
    #: Scale of the voices; 1: without guidance by them.
    audio_scale: float = field(default=II("model.${sampler.bundle}.audio_scale"), metadata=SCALE)
    #: Share of the steps before which there is no guidance, only one forward per evaluation.
    start: float = field(default=0.0, metadata=within(0, 1))
    #: Share of the steps after which there is no guidance any more; 1: guidance to the last step.
    until: float = field(default=1.0, metadata=within(0, 1))
    #: Compute the passes of an evaluation as one forward of a batch; null: if blocks are streamed to a CUDA device
    #: (memory=group-offload or lowest), which is then done once for all passes, and its memory is sufficient.
    batched: bool | None = False

    def check(self) -> None:
        """Raise ConfigError if a scale is not finite, or if guidance ends before it starts."""
        if not self.start <= self.until:
            what = f"guidance from {self.start:g} of the steps until {self.until:g}"
            raise ConfigError(what, field="guidance.until", hint=f"give {self.start:g} to 1")
        for name, value in (("text_scale", self.text_scale), ("audio_scale", self.audio_scale)):
            if not math.isfinite(value):
                raise ConfigError(f"{value} is not a scale", field=f"guidance.{name}", hint="give a number")

    def branches(self) -> tuple[str, ...]:
        """Return the branches (`engine.components.BRANCHES`) that guidance with these scales needs, in their order.

        A scale of 1 turns that guidance off and saves its forwards. Without text guidance, audio is guided against
        "drop_audio". Without audio guidance, "uncond" cancels out of the formula. Without both, only "cond" is needed.
        """
        text, audio = not math.isclose(self.text_scale, 1.0), not math.isclose(self.audio_scale, 1.0)
        if text and audio:
            return ("cond", "drop_text", "uncond")
        if text:
            return ("cond", "drop_text")
        if audio:
            return ("cond", "drop_audio")
        return ("cond",)


@dataclass
class CacheConfig(ComponentConfig):
    """The base of every step cache's config."""


@dataclass
class FolderConfig(ComponentConfig):
    """The base config of sources whose `path` is a folder that `multitalk models pull` fills."""

    #: The folder, with one sub-folder per model.
    path: str = MISSING


@dataclass
class SinkConfig(ComponentConfig):
    """The base of every sink's config."""


@dataclass
class EntrypointConfig(ComponentConfig):
    """The base config of entrypoints with their own defaults."""

    #: Whether it supports `parallel`: its process ends with its first error and ends the others, too.
    parallel: ClassVar[bool] = False
    #: Whether it starts the other processes of `parallel` itself.
    leads: ClassVar[bool] = False

    @classmethod
    def boot(cls, overrides: Sequence[str]) -> list[str]:
        """Return the overrides with which the engine starts if the user gives `overrides`. Raises ConfigError.

        An entrypoint with a field `resume` keeps states if it is set, by default in the folder "auto".
        """
        return with_states(overrides, "auto") if "entrypoint.resume=true" in overrides else list(overrides)


@dataclass
class Config:
    """The whole composed config."""

    #: The network, with its weights and everything that depends on them.
    model: ModelConfig = MISSING
    #: Name of one of the model's resolutions (`multitalk plugins` lists them).
    resolution: str = II("model.resolution")
    #: The kind of network, which the model's preset chooses.
    family: FamilyConfig = MISSING
    #: Where the weights come from.
    source: ComponentConfig = MISSING
    #: How weight files are read from disk.
    reader: ComponentConfig = MISSING
    #: Number format of the transformer's weights in memory.
    quant: QuantConfig = field(default_factory=QuantConfig)
    #: The attention kernel.
    attention: ComponentConfig = MISSING
    #: How LoRAs are applied.
    lora: LoraConfig = field(default_factory=LoraConfig)
    #: Which parts of the model are in host memory and on the device at a time.
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    #: Whether torch.compile compiles the network.
    compile: CompileConfig = field(default_factory=CompileConfig)
    #: How the video autoencoder computes.
    vae: VaeConfig = field(default_factory=VaeConfig)
    #: How many devices work on one video.
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    #: The solver, its steps and its schedule.
    sampler: SamplerConfig = MISSING
    #: How strongly prompt and voices guide the video.
    guidance: GuidanceConfig = MISSING
    #: Step cache: which steps are computed and which reuse earlier results.
    cache: CacheConfig = MISSING
    #: How the regions of speakers are decided that the request leaves to the engine.
    regions: ComponentConfig = MISSING
    #: How a window continues the one before it.
    continuation: ContinuationConfig = field(default_factory=ContinuationConfig)
    #: Where windows meet: "fixed", each is as long as possible; "pauses": in pauses of speech, if one is within reach.
    windows: str = field(default="fixed", metadata=one_of("fixed", "pauses"))
    #: How the lines of a script are spoken.
    speech: SpeechConfig = MISSING
    #: Who speaks when in a recording of several people.
    diariser: DiariserConfig = MISSING
    #: What the network hears of a voice with music or noise; the video keeps the original sound.
    vocals: ComponentConfig = MISSING
    #: How a source video is used.
    dub: DubConfig = field(default_factory=DubConfig)
    #: How windows are judged.
    report: ReportConfig = field(default_factory=ReportConfig)
    #: Which windows are made again.
    retake: RetakeConfig = field(default_factory=RetakeConfig)
    #: How the MP4 is encoded.
    video: VideoConfig = field(default_factory=VideoConfig)
    #: States of unfinished videos, from which an interrupted job continues.
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    #: Publishing a video while it is made.
    live: LiveConfig = field(default_factory=LiveConfig)
    #: What a request's addresses may reach.
    access: AccessConfig = field(default_factory=AccessConfig)
    #: Where a finished video goes.
    sink: SinkConfig = MISSING
    #: What the engine does: make one video, serve jobs, ...
    entrypoint: ComponentConfig = MISSING
    #: Where the workers of a batch run.
    launcher: ComponentConfig = MISSING
    #: The request of `generate`.
    request: RequestConfig = field(default_factory=RequestConfig)
    #: "auto" (CUDA if available), "cpu" or "cuda".
    device: str = field(default="auto", metadata=one_of("auto", "cpu", "cuda"))
    #: Number format of the transformer: "auto" (bfloat16 on CUDA, float32 on CPU), "bfloat16" or "float32".
    dtype: str = field(default="auto", metadata=one_of("auto", "bfloat16", "float32"))
    #: Number format of the residual stream, the tokens between the network's layers. bfloat16 moves fewer bytes and
    #: doubles the rounding error of a forward in bfloat16: see docs/kernels.md.
    residual_dtype: str = field(default="float32", metadata=one_of("float32", "bfloat16"))
    #: Norms and rotations: "eager" are torch's operators, "triton" kernels of our own, which move half the bytes.
    #: "auto": Triton on CUDA where Triton can run, else eager. Without effect on compiled blocks.
    kernels: str = field(default="auto", metadata=one_of("auto", "eager", "triton"))


#: Groups and keys that are fixed when an engine starts: a request that changes one is rejected.
FIXED = (
    "model",
    "family",
    "source",
    "reader",
    "quant",
    "attention",
    "lora",
    "memory",
    "compile",
    "vae",
    "parallel",
    "speech",
    "sink",
    "entrypoint",
    "launcher",
    "device",
    "dtype",
    "residual_dtype",
    "kernels",
    "video",
    "resume",
    "live",
    "access",
)

#: Keys that a request's overrides may set: these and, with a dot, the keys below them.
_ONE_VIDEO = "resolution sampler guidance cache regions continuation windows diariser vocals dub report retake"
OVERRIDABLE = tuple(_ONE_VIDEO.split())


def store_schema() -> None:
    """Store the engine's own schemas in Hydra's ConfigStore."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance().store
    store(name="schema", node=Config)
    store(group="model", name="schema", node=ModelConfig)
    store(group="quant", name="schema", node=QuantConfig)
    store(group="memory", name="schema", node=MemoryConfig)
    store(group="compile", name="schema", node=CompileConfig)
    store(group="parallel", name="schema", node=ParallelConfig)
