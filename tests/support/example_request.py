"""The smallest request that makes a video of the examples of the package."""

from __future__ import annotations

from importlib.resources import files

from engine import Request, Speaker

EXAMPLES = files("engine") / "examples"
REQUEST = Request(
    prompt="a person talks",
    image=str(EXAMPLES / "one.png"),
    speakers=(Speaker(str(EXAMPLES / "one.flac")),),
    frames=5,
    overrides=("sampler.steps=1",),
)
