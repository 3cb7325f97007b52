"""Adaptive projected guidance over text and audio (arXiv 2410.02416)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import Guidance
from engine.config import GuidanceConfig, within
from engine.errors import ConfigError
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class ApgConfig(GuidanceConfig):
    """Adaptive projected guidance (arXiv 2410.02416)."""

    name: str = "apg"
    #: Weight of the earlier steps' guidance in the running sum; a negative weight pushes away from it.
    momentum: float = field(default=-0.75, metadata=within(-0.999, 0.999))
    #: Longest guidance vector (L2 norm); longer ones are scaled down to it.
    norm_threshold: float = field(default=55.0, metadata=within(0.001, 1e6))
    #: Share of the guidance parallel to the conditional prediction that is kept, 0 .. 1.
    eta: float = field(default=0.0, metadata=within(0, 1))


class AdaptiveProjectedGuidance:
    """Adaptive projected guidance (arXiv 2410.02416, algorithm 1): each difference gets momentum, is clipped in norm
    and loses most of the part parallel to the conditional prediction, which is what over-saturates.

    Raises ConfigError for a value out of range.
    """

    def __init__(self, config: ApgConfig) -> None:
        config.check()
        if not -1 < config.momentum < 1:
            what = f"a momentum of {config.momentum:g} lets the sum grow without bound"
            raise ConfigError(what, field="guidance.momentum", hint="give -1 < m < 1")
        if not config.norm_threshold > 0:
            what = f"a threshold of {config.norm_threshold:g}"
            raise ConfigError(what, field="guidance.norm_threshold", hint="give more than 0")
        self.branches = config.branches()
        self.text_scale = config.text_scale
        self.audio_scale = config.audio_scale
        self.norm_threshold = config.norm_threshold
        self.eta = config.eta
        self._momentum = config.momentum
        self._averages: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget the momentum."""
        self._averages.clear()

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Combine the predictions: cond + (scale - 1) * projected difference, for text and for audio."""
        cond = predictions["cond"]
        velocity = cond
        if "drop_text" in self.branches:
            textless = predictions["drop_text"]
            velocity = velocity + (self.text_scale - 1) * self._project("text", cond - textless, cond)
        if "uncond" in self.branches:
            textless, uncond = predictions["drop_text"], predictions["uncond"]
            velocity = velocity + (self.audio_scale - 1) * self._project("audio", textless - uncond, cond)
        if "drop_audio" in self.branches:
            silent = predictions["drop_audio"]
            velocity = velocity + (self.audio_scale - 1) * self._project("audio", cond - silent, cond)
        return velocity

    def _project(self, part: str, difference: Tensor, cond: Tensor) -> Tensor:
        if part in self._averages:
            difference = difference + self._momentum * self._averages[part]
        # The average keeps the unclipped difference.
        self._averages[part] = difference
        clipped = difference * (self.norm_threshold / difference.norm().clamp(min=1e-12)).clamp(max=1.0)
        # float64: the sum runs over every element of the video.
        exact, direction = clipped.double(), cond.double()
        direction = direction / direction.norm().clamp(min=1e-12)
        parallel = (exact * direction).sum() * direction
        projected: Tensor = exact - parallel + self.eta * parallel
        return projected.to(difference.dtype)


@hookimpl
def register_guidance(register: Register[Guidance]) -> None:
    register(AdaptiveProjectedGuidance, ApgConfig)
