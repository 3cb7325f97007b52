"""Blends the start of a window into the end of the window before."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def blend_seam(frames: Tensor, last: Tensor, repeated: Tensor, length: int) -> None:
    """Blend the first `length` frames of a window, float32 (3, F, height, width), into the one before, in place.

    `last` (3, height, width) is the last frame of the window before, `repeated` the same frame as this window decodes
    it. They differ, because encoding and decoding are not exact inverses. Their difference is added to the new frames
    and fades out linearly.
    """
    difference = last - repeated
    for index in range(min(length, frames.shape[1])):
        frames[:, index].add_(difference, alpha=1 - (index + 1) / (length + 1))
