"""The two published versions: rates, windows, schedule and guidance, and how a window continues the one before."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError


@dataclass(frozen=True)
class Version:
    """What differs between Avatar 1.0 and 1.5."""

    name: str
    #: Frames per second of the video, and of the audio features.
    fps: int
    feature_rate: int
    #: Shift of the noise levels, steps, and scales of prompt and voices, without distillation.
    shift: float
    steps: int
    text_scale: float
    audio_scale: float
    #: Whether a continuation starts from the latents of the window before as they are; else from its encoded frames.
    keeps_latents: bool
    #: Whether voices get faint noise and a low-pass before their encoder.
    prepares_voices: bool
    #: Audio encoder: layers (or groups of layers), and their channels.
    audio_block: int
    audio_channel: int
    #: Pixel frames of a window, and those that it repeats of the window before: 4n + 1 each.
    window: int = 93
    motion: int = 13

    @property
    def stride(self) -> int:
        """Feature frames from one video frame to the next."""
        return self.feature_rate // self.fps


#: By name. 1.5 is used with its distillation (8 steps, scales 1); its guided values are those of 1.0.
VERSIONS = {
    "1.0": Version(
        "1.0",
        fps=16,
        feature_rate=32,
        shift=12.0,
        steps=50,
        text_scale=4.0,
        audio_scale=4.0,
        keeps_latents=True,
        prepares_voices=True,
        audio_block=12,
        audio_channel=768,
    ),
    "1.5": Version(
        "1.5",
        fps=25,
        feature_rate=25,
        shift=7.0,
        steps=50,
        text_scale=4.0,
        audio_scale=4.0,
        keeps_latents=False,
        prepares_voices=False,
        audio_block=5,
        audio_channel=1280,
    ),
}


def version(name: str) -> Version:
    """Return the version `name`. Raises ConfigError for another name."""
    if name not in VERSIONS:
        raise ConfigError(f"no version {name!r} of LongCat-Video-Avatar", field="version", hint="1.0 or 1.5")
    return VERSIONS[name]
