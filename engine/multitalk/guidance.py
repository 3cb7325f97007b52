"""Guidance over text and audio: the predictions of several branches -> one velocity. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from engine.errors import ConfigError, UnknownComponent

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("cfg", "apg")


def branches(text_scale: float, audio_scale: float) -> tuple[str, ...]:
    """Return the guidance branches of one step, in the order they run.

    "cond": prompt and voices; "drop_text": negative prompt and voices; "drop_audio": prompt and silence; "uncond":
    negative prompt and silence. A scale of 1 turns its part off: without text guidance audio is guided against
    "drop_audio", without audio guidance "uncond" cancels out of the formula, without both "cond" is the answer.
    """
    text, audio = not math.isclose(text_scale, 1.0), not math.isclose(audio_scale, 1.0)
    if text and audio:
        return ("cond", "drop_text", "uncond")
    if text:
        return ("cond", "drop_text")
    if audio:
        return ("cond", "drop_audio")
    return ("cond",)


class Guidance(Protocol):
    """How the branches' predictions become the velocity that the sampler follows."""

    #: Branches each step needs, in the order they run.
    branches: tuple[str, ...]

    def reset(self) -> None:
        """Forget earlier steps; called before each window."""
        ...

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Mix one step's predictions, float32 (16, T, h, w) for each of `branches`, in step order."""
        ...


def make_guidance(
    name: str,
    text_scale: float,
    audio_scale: float,
    momentum: float = -0.75,
    norm_threshold: float = 55.0,
    eta: float = 0.0,
) -> Guidance:
    """Build the guidance `name`, "cfg" or "apg", with fresh state; the last three parameters are apg's.

    Raises UnknownComponent, and ConfigError for a number that cannot be meant.
    """
    for field, value in (("text_scale", text_scale), ("audio_scale", audio_scale)):
        if not math.isfinite(value):
            raise ConfigError(f"{value} is not a scale", field=f"guidance.{field}", hint="give a number")
    if name == "cfg":
        return ClassifierFreeGuidance(text_scale, audio_scale)
    if name == "apg":
        if not -1 < momentum < 1:
            raise ConfigError(f"a momentum of {momentum:g} grows", field="guidance.momentum", hint="give -1 < m < 1")
        if not norm_threshold > 0:
            raise ConfigError(
                f"a threshold of {norm_threshold:g}", field="guidance.norm_threshold", hint="give more than 0"
            )
        return AdaptiveProjectedGuidance(text_scale, audio_scale, momentum, norm_threshold, eta)
    raise UnknownComponent("guidance", name, NAMES)


class ClassifierFreeGuidance:
    """Classifier-free guidance (arXiv 2207.12598) with one scale for text and one for audio (arXiv 2505.22647, 3.5)."""

    def __init__(self, text_scale: float, audio_scale: float) -> None:
        self.branches = branches(text_scale, audio_scale)
        self.text_scale = text_scale
        self.audio_scale = audio_scale

    def reset(self) -> None:
        """Nothing to forget."""

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Mix the predictions.

        uncond + text_scale * (cond - drop_text) + audio_scale * (drop_text - uncond), or what is left of it.
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


class AdaptiveProjectedGuidance:
    """Adaptive projected guidance (arXiv 2410.02416, algorithm 1): each difference gets momentum, is clipped in norm
    and loses most of the part parallel to the conditional prediction, which is what over-saturates.
    """

    def __init__(
        self, text_scale: float, audio_scale: float, momentum: float, norm_threshold: float, eta: float
    ) -> None:
        self.branches = branches(text_scale, audio_scale)
        self.text_scale = text_scale
        self.audio_scale = audio_scale
        self.norm_threshold = norm_threshold
        self.eta = eta
        self._momentum = momentum
        self._averages: dict[str, Tensor] = {}

    def reset(self) -> None:
        """Forget the momentum."""
        self._averages.clear()

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Mix the predictions: cond + (scale - 1) * projected difference, for text and for audio."""
        cond = predictions["cond"]
        velocity = cond
        if "drop_text" in self.branches:
            textless = predictions["drop_text"]
            velocity = velocity + (self.text_scale - 1) * self._project("text", cond - textless, cond)
        if "uncond" in self.branches:
            textless, uncond = predictions["drop_text"], predictions["uncond"]
            velocity = velocity + (self.audio_scale - 1) * self._project("audio", textless - uncond, cond)
        if "drop_audio" in self.branches:
            velocity = velocity + (self.audio_scale - 1) * self._project(
                "audio", cond - predictions["drop_audio"], cond
            )
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
