"""The warm-up of a worker: short videos with its own weights, so that the first job does not wait for kernels."""

from __future__ import annotations

import logging
import time
from importlib.resources import files

from engine.components import Service
from engine.data import Request, Speaker
from engine.serving.worker.selftest import inline

_LOG = logging.getLogger(__name__)

#: Two latent frames: with one frame torch.compile makes a graph of its own.
FRAMES = 5
#: All branches of the guidance run, once each.
_OVERRIDES = ("sampler.steps=1", "cache=none")
_VOICES = {"two.png": ("left.flac", "right.flac"), "one.png": ("one.flac",)}


def warm_up(service: Service) -> None:
    """Make a video of two persons and one of one person, in the service's own resolution, and forget them.

    They run every kernel, and compile the graphs of both numbers of speakers (`compile=blocks`). Raises EngineError.
    """
    examples = files("engine") / "examples"
    for picture, voices in _VOICES.items():
        began = time.monotonic()
        request = Request(
            prompt="people talk",
            # Not paths: a worker may have switched them off.
            image=inline(examples.joinpath(picture).read_bytes()),
            speakers=tuple(Speaker(inline(examples.joinpath(voice).read_bytes())) for voice in voices),
            frames=FRAMES,
            sink="base64",
            overrides=_OVERRIDES,
        )
        service.generate(request)
        _LOG.info("warm-up: %d frames, %d voices: %.1f s", FRAMES, len(voices), time.monotonic() - began)
