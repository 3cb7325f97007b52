"""The shape of the composed config, and what of it a request may override. Presets in conf/ fill it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from omegaconf import II, MISSING

from engine.config.model import AdapterConfig as AdapterConfig  # parts of this module's face, as those below
from engine.config.model import BundleConfig as BundleConfig
from engine.config.model import ContinuationModelConfig as ContinuationModelConfig
from engine.config.model import ModelConfig as ModelConfig
from engine.config.model import ResolutionConfig as ResolutionConfig
from engine.config.ranges import BLEND, BUNDLE, FPS, SCALE, SHIFT, STEPS, STYLE, WINDOW, X264_PRESET
from engine.config.ranges import SECRET as SECRET
from engine.config.ranges import one_of as one_of
from engine.config.ranges import within as within
from engine.errors import ConfigError


@dataclass
class ComponentConfig:
    """What every component's config says first: which component it is for."""

    #: The component's own name; it is set by choosing the component, not by itself.
    name: str = MISSING


# --- groups of the engine itself --------------------------------------------------------------------------------------


@dataclass
class QuantConfig:
    """How the transformer's weights are kept in memory: "none", "int8", or as a quantised file stores them."""

    #: The way, one of the presets' names.
    name: str = "none"
    #: The quantised file, below the weights' folder, where there are several.
    file: str | None = None


@dataclass
class LoraConfig:
    """How LoRAs are applied; fixed at boot."""

    #: "runtime": an unmerged side branch that each request can have on or off; "merged": into the weights, at load.
    mode: str = field(default="runtime", metadata=one_of("runtime", "merged"))
    #: LoRAs beside those of the sampler's bundle.
    extra: list[AdapterConfig] = field(default_factory=list)


@dataclass
class MemoryConfig:
    """What of the model is in memory, and on the device, at a time: see docs/loading.md for the profiles."""

    #: "none", "text-offload", "model-offload", "group-offload", "lowest", or "auto": the fastest of them that fits.
    name: str = "none"
    #: group-offload and lowest: transformer blocks that come to the device while one computes.
    blocks: int = field(default=1, metadata=within(1, 1000))
    #: group-offload and lowest: blocks that stay on the device while the transformer is in use; "auto": as many as fit
    #: there when the weights are loaded, beside what a window of the chosen resolution is allowed.
    resident: int | str = field(default=0, metadata=within(0, 1000) | one_of("auto"))
    #: Move the next blocks while the ones before compute; null: where the device is CUDA, which it needs.
    streams: bool | None = None
    #: CUDA: pin the weights that wait in the host's memory; null: all of them where there is room for that when they
    #: are loaded, else those of the transformer's blocks alone.
    pin: bool | None = None
    #: Side in pixels of the tiles in which the VAE works, a multiple of 32; 0: none. Inexact: frames change a little.
    tile: int = field(default=0, metadata=within(0, 4096))


@dataclass
class ParallelConfig:
    """How many devices work on one video: "none" (one), or "ulysses", one for each process that torchrun started."""

    #: The way, one of the presets' names.
    name: str = "none"
    #: Number of this process among all; torchrun sets it.
    rank: int | None = field(default="${oc.env:RANK,null}", metadata=within(0, 65_536))  # type: ignore[assignment]
    #: Number of this process among those of this machine; torchrun sets it.
    local_rank: int | None = field(default="${oc.env:LOCAL_RANK,null}", metadata=within(0, 65_536))  # type: ignore[assignment]
    #: Number of processes; torchrun sets it.
    size: int | None = field(default="${oc.env:WORLD_SIZE,null}", metadata=within(1, 65_536))  # type: ignore[assignment]
    #: Name of torchrun's run; null: this process was not started by torchrun.
    run: str | None = "${oc.env:TORCHELASTIC_RUN_ID,null}"


@dataclass
class ContinuationConfig:
    """How a video goes on from one window to the next."""

    #: "multitalk": motion frames mixed with noise of the step; "infinitetalk": clean motion frames, fixed reference.
    style: str = field(default=II("model.continuation.style"), metadata=STYLE)
    #: Frames of the window before that the next one is given: 4n + 1, at most half of a window.
    frames: int = field(default=II("model.continuation.frames"), metadata=WINDOW)
    #: Frames over which a window is eased from the last one that was shown; 0: none.
    blend: int = field(default=II("model.continuation.blend"), metadata=BLEND)
    #: Pull each window's colours towards the picture's, 0 (off) .. 1.
    color_strength: float = field(default=1.0, metadata=within(0, 1))


@dataclass
class AccessConfig:
    """What a request's addresses may reach, unless the caller of the engine gives an Access of its own."""

    #: Kinds of address that may be opened: "path", "data", "http", "https", "s3" and those of plugins.
    schemes: list[str] = field(default_factory=lambda: ["path", "data"])
    #: Folders below which paths may lie; null: anywhere.
    folders: list[str] | None = None
    #: Most bytes of one file.
    max_bytes: int = field(default=512 * 2**20, metadata=within(1, 2**50))
    #: Most seconds to open one address.
    timeout: float = field(default=60.0, metadata=within(0.001, 86_400))
    #: Most seconds to open all of a request's addresses.
    total_timeout: float = field(default=300.0, metadata=within(0.001, 86_400))
    #: Most pixels of a picture or a mask; the default is 8192 x 8192, the largest is Pillow's own limit.
    max_pixels: int = field(default=2**26, metadata=within(1, 178_956_970))
    #: Longest voice in seconds, of what is taken of its file.
    max_seconds: float = field(default=3600.0, metadata=within(0.001, 86_400))
    #: Hosts that may be fetched from although they are not on the public internet.
    private_hosts: list[str] = field(default_factory=list)
    #: Buckets that s3:// addresses may name where this machine's keys open them; "": the one in `endpoint_url`'s host.
    buckets: list[str] = field(default_factory=lambda: ["${oc.env:S3_BUCKET,''}"])
    #: Address of their store, where it is not Amazon's.
    endpoint_url: str | None = "${oc.env:BUCKET_ENDPOINT_URL,null}"
    #: Their region.
    region: str | None = "${oc.env:AWS_REGION,null}"


@dataclass
class VideoConfig:
    """How the MP4 is encoded."""

    #: x264 constant rate factor, 0 (lossless) .. 51.
    crf: int = field(default=18, metadata=within(0, 51))
    #: x264's preset, from the fastest encoding to the smallest file.
    preset: str = field(default="medium", metadata=X264_PRESET)
    #: AAC bits a second.
    audio_bitrate: int = field(default=192_000, metadata=within(32_000, 512_000))


def _asked(default: Any, about: str, word: str, allowed: Mapping[str, Any] | None = None) -> Any:
    return field(default=default, metadata={"help": about, "word": word, **(allowed or {})})


@dataclass
class RequestConfig:
    """The request of the `generate` entrypoint; the flags of the command line end here, one for each field in order."""

    image: str | None = _asked(None, "the picture: a path, or an address that a plugin opens", "FILE")
    audio: list[str] = field(
        default_factory=list,
        metadata={
            "word": "FILE",
            "help": "a voice, once for each person from left to right; 'silence' for one who is quiet; "
            "FILE#left, FILE#track=2 or FILE#start=3,duration=10,delay=1 takes a part of it",
        },
    )
    prompt: str | None = _asked(None, "what is to be seen", "TEXT")
    negative_prompt: str | None = _asked(None, "what is not to be seen; without it the model's own", "TEXT")
    frames: int | str | None = _asked(
        None, "frames of the video; auto, or without it: as long as the voices", "N|auto", within(1, 90_000)
    )
    fps: float | None = _asked(None, "frames a second, 1 to 60; without it the model's own rate", "F", FPS)
    seed: int = _asked(42, "start of the noise, 0 to 2**63 - 1; -1 for a random one (42)", "S", within(-1, 2**63 - 1))
    speakers: str | None = _asked(None, "YAML or JSON: who speaks where, in place of --audio (see docs/cli.md)", "FILE")
    audio_type: str = _asked(
        "para", "para: all voices start at once; add: one after the other", "para|add", one_of("para", "add")
    )
    timing: str = _asked(
        "direct",
        "direct: each frame at its own time; native: made at the model's rate and picked",
        "direct|native",
        one_of("direct", "native"),
    )
    fit: str = _asked("crop", "how the picture comes to the model's shape", "crop|pad", one_of("crop", "pad"))
    #: Name of the video's file; the flag is --output.
    filename: str | None = None


# --- kinds of component -----------------------------------------------------------------------------------------------


@dataclass
class SamplerConfig(ComponentConfig):
    """What every sampler knows. Steps, shift, guidance scales and LoRAs come from the model's bundle."""

    #: "standard" or "turbo": which of the model's bundles the defaults come from.
    bundle: str = field(default="standard", metadata=BUNDLE)
    #: Sampling steps.
    steps: int = field(default=II("model.${sampler.bundle}.steps"), metadata=STEPS)
    #: Shift of the flow-matching schedule.
    shift: float = field(default=II("model.${sampler.bundle}.shift"), metadata=SHIFT)

    def check(self) -> None:
        """Raise ConfigError for steps or a shift that no sampler can mean."""
        if not 1 <= self.steps <= 1000:
            raise ConfigError(f"{self.steps} steps", field="sampler.steps", hint="give 1 to 1000")
        if not self.shift > 0:
            raise ConfigError(f"a shift of {self.shift:g}", field="sampler.shift", hint="give more than 0")


@dataclass
class GuidanceConfig(ComponentConfig):
    """What every guidance knows: how far prompt and voices steer. The defaults come from the model's bundle."""

    #: Scale of the prompt; 1: without guidance by it.
    text_scale: float = field(default=II("model.${sampler.bundle}.text_scale"), metadata=SCALE)
    #: Scale of the voices; 1: without guidance by them.
    audio_scale: float = field(default=II("model.${sampler.bundle}.audio_scale"), metadata=SCALE)

    def check(self) -> None:
        """Raise ConfigError for a scale that is no number."""
        for name, value in (("text_scale", self.text_scale), ("audio_scale", self.audio_scale)):
            if not math.isfinite(value):
                raise ConfigError(f"{value} is not a scale", field=f"guidance.{name}", hint="give a number")

    def branches(self) -> tuple[str, ...]:
        """Return the branches (`engine.components.BRANCHES`) that guidance with these scales needs, in their order.

        A scale of 1 turns its part off and saves its forwards: without text guidance audio is guided against
        "drop_audio", without audio guidance "uncond" cancels out of the formula, without both "cond" is the answer.
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
    """What every step cache's config is a kind of."""


@dataclass
class FolderConfig(ComponentConfig):
    """What the config of a source derives from whose `path` is a folder that `multitalk models pull` fills."""

    #: The folder, with a sub-folder for each model.
    path: str = MISSING


@dataclass
class SinkConfig(ComponentConfig):
    """What every sink's config is a kind of."""


@dataclass
class EntrypointConfig(ComponentConfig):
    """What the config of an entrypoint with defaults of its own derives from."""

    #: Whether it works with `parallel`: its process ends with its first error, and takes the others along.
    parallel: ClassVar[bool] = False

    @classmethod
    def boot(cls, overrides: Sequence[str]) -> list[str]:
        """Return what an engine is booted with that is asked for with `overrides`. Raises ConfigError."""
        return list(overrides)


@dataclass
class Config:
    """The whole composed config."""

    #: The network, with its weights and everything that depends on them.
    model: ModelConfig = MISSING
    #: Name of one of the model's resolutions (`multitalk plugins` lists them).
    resolution: str = II("model.resolution")
    #: Where the weights come from.
    source: ComponentConfig = MISSING
    #: How weights are read from disk.
    reader: ComponentConfig = MISSING
    #: How the transformer's weights are kept in memory.
    quant: QuantConfig = field(default_factory=QuantConfig)
    #: The attention kernel.
    attention: ComponentConfig = MISSING
    #: How LoRAs are applied.
    lora: LoraConfig = field(default_factory=LoraConfig)
    #: What of the model is in memory, and on the device, at a time.
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    #: How many devices work on one video.
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    #: The solver, its steps and its schedule.
    sampler: SamplerConfig = MISSING
    #: How far prompt and voices steer the video.
    guidance: GuidanceConfig = MISSING
    #: Which steps are computed, and which are taken from earlier ones.
    cache: CacheConfig = MISSING
    #: How a video goes on from one window to the next.
    continuation: ContinuationConfig = field(default_factory=ContinuationConfig)
    #: How the MP4 is encoded.
    video: VideoConfig = field(default_factory=VideoConfig)
    #: What a request's addresses may reach.
    access: AccessConfig = field(default_factory=AccessConfig)
    #: Where a finished video goes.
    sink: SinkConfig = MISSING
    #: What the engine does: makes one video, serves jobs, ...
    entrypoint: ComponentConfig = MISSING
    #: Where the workers of a batch run.
    launcher: ComponentConfig = MISSING
    #: What `generate` is asked for.
    request: RequestConfig = field(default_factory=RequestConfig)
    #: "auto" (CUDA where there is one), "cpu" or "cuda".
    device: str = field(default="auto", metadata=one_of("auto", "cpu", "cuda"))
    #: Number format of the transformer: "auto" (bfloat16 on CUDA, float32 on CPU), "bfloat16" or "float32".
    dtype: str = field(default="auto", metadata=one_of("auto", "bfloat16", "float32"))


#: Groups and keys that are fixed once an engine is booted: a request that changes one is refused.
FIXED = (
    "model",
    "source",
    "reader",
    "quant",
    "attention",
    "lora",
    "memory",
    "parallel",
    "sink",
    "entrypoint",
    "launcher",
    "device",
    "dtype",
    "video",
    "access",
)

#: What a request's overrides may name: these keys and, with a dot, what lies below them.
OVERRIDABLE = ("resolution", "sampler", "guidance", "cache", "continuation")


def store_schema() -> None:
    """Enter the engine's own nodes into Hydra's ConfigStore."""
    store = ConfigStore.instance().store
    store(name="schema", node=Config)
    store(group="model", name="schema", node=ModelConfig)
    store(group="quant", name="schema", node=QuantConfig)
    store(group="memory", name="schema", node=MemoryConfig)
    store(group="parallel", name="schema", node=ParallelConfig)


store_schema()
