"""Allowed values of a config: fields declare them (`within`, `one_of`), and `engine.config.bounds` checks them."""

from __future__ import annotations

from typing import Any


def within(least: float, most: float) -> dict[str, Any]:
    """Return the metadata of a field whose numbers are `least` to `most`, which `engine.config.bounds` checks."""
    return {"within": (least, most)}


def one_of(*words: str) -> dict[str, Any]:
    """Return the metadata of a field whose text is one of `words`, which `engine.config.bounds` checks."""
    return {"one_of": words}


#: Metadata of a field whose value is never shown: a password, a key.
SECRET: dict[str, Any] = {"secret": True}

#: Steps of a sampler, or a step number of a cache.
STEPS = within(1, 1000)
#: Shift of the flow-matching schedule: outside this range all of its noise levels are almost equal.
SHIFT = within(0.01, 100)
#: Scale of guidance, as in a job: larger ones destroy the picture and finally give NaN.
SCALE = within(0, 30)
#: Frames of a window, and frames per second of a model.
WINDOW = within(1, 1001)
FPS = within(1, 60)
BLEND = within(0, 1001)
#: Limits of a report's figures: ratios, distances in CIE Lab and numbers of frames are far below; a correlation may be
#: negative.
FIGURE = within(0, 1e6)
CORRELATION = within(-1, 1)
COEFFICIENTS = within(-1e9, 1e9)
MAGNITUDES = within(1e-6, 1e6)

#: The model's bundle that provides a sampler's defaults.
BUNDLE = one_of("standard", "turbo", "distilled")
#: How a model continues a video from window to window.
STYLE = one_of("multitalk", "infinitetalk", "longcat")
#: x264's presets, from the fastest encoding to the smallest file. x264 itself would report an unknown one on stderr.
X264_PRESET = one_of(
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
