"""Latents -> Frames in the picture's colours, and the history from which the next window continues."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from engine.components import CancelToken
from engine.data import DecodeOptions, Frames, Window
from engine.errors import EngineError
from engine.media.color import Statistics, match_color
from engine.stages.seam import blend_seam

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.loading.model import Model

#: Values that become bytes at a time.
_CHUNK = 2**24
#: Two of 255 grey levels, for pixels in -1 .. 1: frames that vary no more are of one colour.
_FLAT = 2 * 2 / 255
#: Standard deviation in CIE Lab above which a picture has more than one colour.
_VARIED = 1.0


class Decoded(NamedTuple):
    """A window's new frames, and its last ones for the next window: float32 (3, M, H, W) in -1 .. 1, on the CPU."""

    frames: Frames
    history: Tensor


@torch.no_grad()
def decode(
    model: Model,
    latents: Tensor,
    window: Window,
    reference: Statistics,
    options: DecodeOptions,
    history: Tensor | None = None,
    *,
    cancel: CancelToken | None = None,
) -> Decoded:
    """Decode a window's latents, float32 (16, T, h, w), to its `keep` new frames.

    Colours are corrected towards `reference`. `history` is that of the window before; the new frames are blended with
    its last frame. The new history consists of the last `motion_frames` frames, repeated or new, before rounding to
    8 bits. Raises Cancelled between chunks, and EngineError (`broken_window`) for a window with values that are not
    finite, or of one colour.
    """
    with model.use("vae"):
        # Read only after decoding, so that the host does not wait for the device twice.
        largest = latents.abs().amax()
        decoded = model.codec.decode(latents, cancel=cancel)
    _check(float(largest), decoded[:, window.motion : window.motion + window.keep], window, reference)
    end = window.motion + window.keep
    # Frames that are not used are not corrected.
    begin = max(0, min(window.motion - 1, end - options.motion_frames))
    pixels = decoded[:, begin:end]
    match_color(pixels, reference, options.color_strength)
    new = pixels[:, window.motion - begin :]
    if history is not None and options.blend:
        last = history[:, -1].to(pixels.device)
        blend_seam(new, last, pixels[:, window.motion - begin - 1], options.blend)
    # A copy, so that the memory of the window's other frames is freed. Channel by channel: a device would first put all
    # three next to each other.
    history = torch.stack([plane[-options.motion_frames :].to("cpu", copy=True) for plane in pixels])
    return Decoded(Frames(_pictures(new), options.fps), history)


def _pictures(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Return frames (3, F, height, width) in -1 .. 1 as uint8 (F, height, width, 3), cut and not rounded."""
    _, frames, height, width = pixels.shape
    pictures = torch.empty(frames, height, width, 3, dtype=torch.uint8)
    step = max(1, _CHUNK // (3 * height * width))
    for begin in range(0, frames, step):
        some = pixels[:, begin : begin + step]
        # Four times fewer bytes go to the host than as float32.
        levels = ((some + 1) / 2 * 255).clamp_(0, 255).to(torch.uint8)
        pictures[begin : begin + step] = levels.permute(1, 2, 3, 0).contiguous()
    return pictures.numpy()


def _check(largest: float, new: Tensor, window: Window, reference: Statistics) -> None:
    """Raise EngineError for broken latents or frames; the reductions propagate NaN and infinity."""
    spread = float((new.amax(dim=(2, 3)) - new.amin(dim=(2, 3))).amax())
    where = f"window {window.index + 1}"
    if not math.isfinite(largest) or not math.isfinite(spread):
        when = "sampling" if not math.isfinite(largest) else "decoding"
        what = f"{where} contains values that are not finite after {when}"
    elif spread <= _FLAT and reference.deviation.max() > _VARIED:
        what = f"{where} is of one colour, and the picture is not"
    else:
        return
    hint = "lower the scales or the shift, choose dtype=float32 or attention=sdpa, and check weights and LoRAs"
    raise EngineError(what, hint=hint, code="broken_window")
