"""Hold a window's latents at its source frames, outside the people who speak, while it is denoised."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from engine.data import Held

#: A function (latents, time) that returns latents with some of them replaced; time is 0 .. 1000.
Hold = Callable[[Tensor, float], Tensor]


def holding_source(hold: Hold, held: Held | None, noise: Tensor, device: torch.device) -> Hold:
    """Return a function that puts the source's frames into latents, and then does what `hold` does.

    Outside the regions the latents are always the source's, mixed with the window's own `noise` (16, T, h, w) at the
    level of the time (RePaint, arXiv 2201.09865, with one noise instead of a new one for each step). Above the level
    `held.until` they are so inside, too: what is decided there, places and poses, is the source's (SDEdit,
    arXiv 2108.01073). No random number is drawn, so the next window has the same noise with and without a source.
    """
    if held is None:
        return hold
    clean, inside = held.latents.to(device, torch.float32), held.inside.to(device, torch.float32)
    fresh = noise.to(device, torch.float32)

    def hold_both(latents: Tensor, time: float) -> Tensor:
        level = time / 1000
        source = (1 - level) * clean + level * fresh
        return hold(source if level > held.until else inside * latents + (1 - inside) * source, time)

    return hold_both
