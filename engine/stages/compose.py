"""Decoded frames over source frames: people who speak anew, in a source video that stays as it is around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.data import Frames
from engine.media.canvas import CELL
from engine.stages.decode import Decoded

if TYPE_CHECKING:
    import numpy.typing as npt


def soft_mask(mask: npt.NDArray[np.bool_], width: int) -> npt.NDArray[np.float32]:
    """Return a mask (H, W) whose edge rises from 0 to 1 within `width` pixels inside it; float32.

    Outside it stays 0. In a small mask the edge is narrower: a third of the way to its middle at most. The edge of the
    picture is no edge of the mask.
    """
    from scipy.ndimage import distance_transform_edt

    if mask.all() or width < 1:
        return mask.astype(np.float32)
    inward = distance_transform_edt(mask)
    reach = min(width + 1.0, max(1.0, float(inward.max()) / 3))
    soft: npt.NDArray[np.float32] = np.clip(inward / reach, 0, 1).astype(np.float32)
    return soft


def latent_mask(mask: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return 1 for each latent cell with a part of the mask (H, W), else 0: float32 (H / 8, W / 8)."""
    height, width = mask.shape
    cells = mask.reshape(height // CELL, CELL, width // CELL, CELL).max(axis=(1, 3))
    inside: npt.NDArray[np.float32] = (cells > 0).astype(np.float32)
    return inside


def compose(made: Decoded, source: npt.NDArray[np.uint8], mask: npt.NDArray[np.float32], begin: int) -> Decoded:
    """Return a window's new frames and its history with the source's pixels outside the mask, to the byte.

    `source` are the frames of the window, (begin + new frames, H, W, 3), of which the first `begin` are repeated ones;
    `mask`, float32 (H, W) in 0 .. 1, is the share of the decoded frames.
    """
    new, history = made.frames.pictures, made.history
    share, outside = mask[..., None], mask == 0
    for frame, below in zip(new, source[begin:], strict=True):
        # In place, frame by frame: in float32 a window has four times its bytes.
        mixed = np.rint(share * frame + (1 - share) * below)
        frame[:] = mixed.astype(np.uint8)
        frame[outside] = below[outside]
    last = source[len(source) - history.shape[1] :]
    pixels = torch.from_numpy(np.moveaxis(last, 3, 0).astype(np.float32)) / 255 * 2 - 1
    weight = torch.from_numpy(mask)
    return Decoded(Frames(new, made.frames.fps), weight * history + (1 - weight) * pixels)
