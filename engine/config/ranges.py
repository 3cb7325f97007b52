"""What a config's values may be: fields declare it (`within`, `one_of`), and `engine.config.bounds` checks it."""

from __future__ import annotations

from typing import Any


def within(least: float, most: float) -> dict[str, Any]:
    """Return the metadata of a field whose numbers are `least` to `most`, which `engine.config.bounds` checks."""
    return {"within": (least, most)}


def one_of(*words: str) -> dict[str, Any]:
    """Return the metadata of a field whose text is one of `words`; `engine.config.bounds` holds every config to it."""
    return {"one_of": words}


#: Metadata of a field whose value is shown nowhere: a password, a key.
SECRET: dict[str, Any] = {"secret": True}

#: Steps of a sampler, or of a cache within them.
STEPS = within(1, 1000)
#: Of the flow-matching schedule: beyond these all of its noise levels fall together.
SHIFT = within(0.01, 100)
#: Of guidance, as in a job: larger ones leave nothing of a picture, and at last no numbers.
SCALE = within(0, 30)
#: Frames of a window, and frames a second of a model.
WINDOW = within(1, 1001)
FPS = within(1, 60)
BLEND = within(0, 1001)
COEFFICIENTS = within(-1e9, 1e9)

#: Which of a model's bundles a sampler takes its defaults from.
BUNDLE = one_of("standard", "turbo")
#: How a model continues a video from window to window.
STYLE = one_of("multitalk", "infinitetalk")
#: x264's presets, from quick to small. x264 itself would write about an unknown one on stderr.
X264_PRESET = one_of(
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
