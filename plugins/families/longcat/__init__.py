"""LongCat-Video-Avatar 1.0 and 1.5: a text-to-video network with an audio attention in every block.

Source of all formulas, names and sizes: meituan-longcat/LongCat-Video, commit 6b3f4b8 (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from engine import hookimpl
from engine.components import Guidance, Quantiser, Sampler, Schedule
from engine.config import FamilyConfig, GuidanceConfig, QuantConfig, SamplerConfig, within
from engine.data import LoraFit, Weights
from engine.errors import ConfigError, MissingExtra
from engine.family import Family, FamilyModel
from engine.plugin.register import Register

#: The published int8 file, as `quant`.
INT8 = "int8-longcat"


def _find_latest(folder: Path, weights: Weights) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    from plugins.families.longcat.folders import find_parts

    return find_parts(folder, "1.5", int8=weights.quant == INT8)


def _find_first(folder: Path, weights: Weights) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    from plugins.families.longcat.folders import find_parts

    return find_parts(folder, "1.0", network=weights.adapter)


def _look_at_lora(path: Path, shapes: Mapping[str, tuple[int, ...] | None]) -> LoraFit:
    from plugins.families.longcat.lora_keys import look_at_lora

    return look_at_lora(path, shapes)


@dataclass
class LongCatConfig(FamilyConfig):
    """LongCat-Video-Avatar 1.5: one network for one speaker and for two, with Whisper's encoder for voices."""

    name: str = "longcat"
    #: Position of the picture in time, in latent frames of a window that continues another: near new frames it keeps
    #: them like the picture; beyond the window, such as 30, there is less repeated movement.
    reference_position: int = field(default=10, metadata=within(-1000, 1000))
    #: New latent frames at most this far from that position do not see the picture; 0: all see it. More: less repeated
    #: movement, and artefacts if it is too much.
    hidden_range: int = field(default=3, metadata=within(0, 1000))
    #: Compute keys and values of a window's given frames once for all steps. Takes up to 6 GB at 480p and saves about a
    #: fifth of the time; the video is the same but for rounding.
    keep_keys: bool = True
    #: Round times to bfloat16, as the public inference does: a step of 4 near 1000.
    rounded_times: bool = False

    components: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder")
    find_parts: ClassVar[Any] = _find_latest
    look_at_lora: ClassVar[Any] = _look_at_lora
    styles: ClassVar[tuple[str, ...]] = ("longcat",)
    cannot: ClassVar[Mapping[str, str]] = {
        "attention=radial": "it is computed from the grid of the tokens, of which groups of frames see different ones",
        "cache": "no step cache was measured with it, and keys of given frames are kept already",
        "parallel": "its forwards cannot be shared",
        "compile": "its blocks fill and read a cache, which the compiler does not see",
    }
    only: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        "quant": (("none", "int8", INT8), "it has an int8 file of its own, and no other"),
    }
    #: "1.5" or "1.0" (`plugins.families.longcat.versions`).
    version: ClassVar[str] = "1.5"


@dataclass
class LongCatFirstConfig(LongCatConfig):
    """LongCat-Video-Avatar 1.0: a network for one speaker and one for two, with wav2vec 2.0 for voices."""

    name: str = "longcat-1.0"

    find_parts: ClassVar[Any] = _find_first
    only: ClassVar[Mapping[str, tuple[tuple[str, ...], str]]] = {
        "quant": (("none", "int8"), "no file in 8 bits is published of it"),
    }
    version: ClassVar[str] = "1.0"


class LongCat:
    """See `engine.family.Family`."""

    def __init__(self, config: LongCatConfig) -> None:
        """Import nothing yet."""
        self.config = config

    def load(self, folder: Path, **options: Any) -> FamilyModel:
        """See `engine.family.Family`."""
        from plugins.families.longcat.load import load_longcat

        return load_longcat(folder, self.config, **options)

    def network(self) -> Any:
        """See `engine.family.Family`."""
        from plugins.families.longcat.transformer import AvatarTransformer3DModel

        return AvatarTransformer3DModel

    def messages(self) -> Sequence[type]:
        """See `engine.family.Family`."""
        return ()


@dataclass
class LongCatSamplerConfig(SamplerConfig):
    """Euler over evenly spaced noise levels from 1 to 0.001, shifted: LongCat-Video-Avatar 1.5 with guidance."""

    name: str = "longcat"


@dataclass
class LongCatTailConfig(SamplerConfig):
    """As `longcat`; windows that continue others end with the times 500, 450 .. 50: LongCat-Video-Avatar 1.0."""

    name: str = "longcat-tail"


@dataclass
class LongCatDistilledConfig(SamplerConfig):
    """Euler over the 8 noise levels for which LongCat-Video-Avatar 1.5 was distilled, shifted."""

    name: str = "longcat-distilled"


class LongCatSampler:
    """Raises ConfigError for steps or shift out of range, or a number of steps that the distillation has not."""

    def __init__(
        self, config: LongCatSamplerConfig | LongCatTailConfig | LongCatDistilledConfig, *, continued: bool = False
    ) -> None:
        from plugins.families.longcat.schedules import sigmas

        config.check()
        self._config = config
        self._tailed = isinstance(config, LongCatTailConfig)
        #: Noise levels, 1 .. 0.
        self.sigmas = sigmas(
            "1.0" if self._tailed else "1.5",
            config.steps,
            config.shift,
            distilled=isinstance(config, LongCatDistilledConfig),
            continuation=continued,
        )

    def schedule(self) -> Schedule:
        """Return a new schedule."""
        from plugins.families.longcat.schedules import Levels

        return Levels(self.sigmas)

    def continued(self) -> tuple[Sampler, int]:
        """See `engine.components.ContinuingSampler`."""
        sampler = LongCatSampler(self._config, continued=True)
        return sampler, len(sampler.sigmas) - 1


@dataclass
class LongCatGuidanceConfig(GuidanceConfig):
    """Guidance as LongCat-Video-Avatar combines it: the voices are guided against silence and the negative prompt."""

    name: str = "longcat"


def _guidance(config: LongCatGuidanceConfig) -> Guidance:
    from plugins.families.longcat.guidance import AvatarGuidance

    config.check()
    return AvatarGuidance(config.text_scale, config.audio_scale)


@dataclass
class PublishedInt8Config(QuantConfig):
    """The published int8 file of LongCat-Video-Avatar 1.5, kept as it is stored; needs the extra [quant]."""

    name: str = INT8


class PublishedInt8:
    """The weights are quantised in their file: nothing is left to do but to check that."""

    def __init__(self, config: PublishedInt8Config) -> None:
        pass

    def check(self) -> None:
        """Raise MissingExtra without torchao."""
        from importlib.util import find_spec

        if find_spec("torchao") is None:
            raise MissingExtra(f"quant={INT8}", "torchao", "quant")

    def cost(self) -> tuple[float, int]:
        """Return 1 byte per value and 4 per row, its float32 scale."""
        return 1, 4

    def apply(self, transformer: Any, chosen: Any) -> None:
        """Raise ConfigError unless the network's layers are in 8 bits already."""
        dense = [
            name
            for name, layer in transformer.named_modules()
            if chosen(layer, name) and not hasattr(layer.weight, "qdata")
        ]
        if dense:
            raise ConfigError(
                f"quant={INT8} reads a file in 8 bits, and {dense[0]} is not in 8 bits",
                field="quant",
                hint="choose quant=int8, which quantises while loading, or another model",
            )


@hookimpl
def register_families(register: Register[Family]) -> None:
    """Offer both versions."""
    register(LongCat, LongCatConfig)
    register(LongCat, LongCatFirstConfig)


@hookimpl
def register_samplers(register: Register[Sampler]) -> None:
    """Offer the published schedules."""
    register(LongCatSampler, LongCatSamplerConfig)
    register(LongCatSampler, LongCatTailConfig)
    register(LongCatSampler, LongCatDistilledConfig)


@hookimpl
def register_guidance(register: Register[Guidance]) -> None:
    """Offer the published combination of passes."""
    register(_guidance, LongCatGuidanceConfig)


@hookimpl
def register_quants(register: Register[Quantiser]) -> None:
    """Offer the published int8 file."""
    register(PublishedInt8, PublishedInt8Config)
