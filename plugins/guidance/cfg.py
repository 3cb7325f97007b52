"""Classifier-free guidance over text and audio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import Guidance
from engine.config import GuidanceConfig
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class CfgConfig(GuidanceConfig):
    """Classifier-free guidance over text and audio. A scale of 1 turns its part off and saves its forwards."""

    name: str = "cfg"


class ClassifierFreeGuidance:
    """Classifier-free guidance (arXiv 2207.12598) with one scale for text and one for audio (arXiv 2505.22647, 3.5).

    Raises ConfigError for a scale that is not a finite number.
    """

    def __init__(self, config: CfgConfig) -> None:
        config.check()
        self.branches = config.branches()
        self.text_scale = config.text_scale
        self.audio_scale = config.audio_scale

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Combine the predictions.

        uncond + text_scale * (cond - drop_text) + audio_scale * (drop_text - uncond), without terms that cancel.
        """
        cond = predictions["cond"]
        if self.branches == ("cond",):
            return cond
        if "drop_audio" in self.branches:
            silent = predictions["drop_audio"]
            return silent + self.audio_scale * (cond - silent)
        textless = predictions["drop_text"]
        if "uncond" not in self.branches:
            return textless + self.text_scale * (cond - textless)
        uncond = predictions["uncond"]
        return uncond + self.text_scale * (cond - textless) + self.audio_scale * (textless - uncond)


@hookimpl
def register_guidance(register: Register[Guidance]) -> None:
    register(ClassifierFreeGuidance, CfgConfig)
