"""Guidance over prompt and voices: which passes are needed, and their combination."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engine.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

#: Passes: prompt and voices; negative prompt and voices; negative prompt and silence. In silence all voices are zeros
#: and masks stay, unlike in MultiTalk, whose silence is one voice.
COND, DROP_TEXT, UNCOND = "cond", "drop_text", "uncond"


class AvatarGuidance:
    """uncond + text_scale * (cond - drop_text) + audio_scale * (drop_text - uncond).

    Without guidance both scales are 1 and one pass is made. For an audio scale of 1 the last pass has no weight and is
    left out. A text scale of 1 still needs all three: a prompt with silence, MultiTalk's second pass, would be another
    result. Raises ConfigError for scales that the public code ignores: at most 1, but not both 1.
    """

    def __init__(self, text_scale: float, audio_scale: float) -> None:
        if not math.isfinite(text_scale) or not math.isfinite(audio_scale):
            raise ConfigError("a scale is not a finite number", field="guidance", hint="1 is off")
        if max(text_scale, audio_scale) <= 1 and (text_scale, audio_scale) != (1, 1):
            raise ConfigError(
                f"scales of {text_scale:g} and {audio_scale:g} have no effect: guidance starts above 1",
                field="guidance.text_scale, guidance.audio_scale",
                hint="use 1 and 1 for none, or make one larger than 1",
            )
        self.text_scale, self.audio_scale = text_scale, audio_scale

    @property
    def branches(self) -> tuple[str, ...]:
        """The passes of each evaluation."""
        if max(self.text_scale, self.audio_scale) <= 1:
            return (COND,)
        return (COND, DROP_TEXT) if self.audio_scale == 1 else (COND, DROP_TEXT, UNCOND)

    def reset(self) -> None:
        """Do nothing: there is no state."""

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Combine the predictions of an evaluation."""
        cond = predictions[COND]
        if len(self.branches) == 1:
            return cond
        textless = predictions[DROP_TEXT]
        guided = self.text_scale * (cond - textless)
        if UNCOND not in self.branches:
            return textless + guided
        silent = predictions[UNCOND]
        return silent + guided + self.audio_scale * (textless - silent)
