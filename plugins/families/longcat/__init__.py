"""LongCat-Video-Avatar 1.0 and 1.5: a text-to-video network with an audio attention in every block.

Source of all formulas, names and sizes: meituan-longcat/LongCat-Video, commit 6b3f4b8 (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import hookimpl
from engine.components import Guidance, Quantiser, Sampler, Schedule
from engine.config import GuidanceConfig, QuantConfig, SamplerConfig
from engine.errors import ConfigError, MissingExtra
from engine.family import Family, FamilyModel
from engine.plugin.register import Register
from plugins.families.longcat.settings import INT8, LongCatConfig, LongCatFirstConfig


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
        """See `engine.family.ContinuingSampler`."""
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

    #: See `engine.components.StoredQuantiser`.
    stored = True

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
