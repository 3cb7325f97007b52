"""Match the colours of frames to the source picture, in torch, on the device where the frames are.

CIE Lab as in scikit-image (`skimage.color`): sRGB's curve, the white point D65 for the 2 degree observer, and the
rounded constants of its conversions. So results are equal to the reference implementation's to 1e-5 of a picture's
range.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

#: The white point, and X, Y and Z of the red, green and blue of linear sRGB.
_WHITE = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)
_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]],
    dtype=torch.float64,
)
#: Where the curves become straight lines near black, and the lines' slopes: encoded and linear sRGB, XYZ and Lab.
_ENCODED, _LINEAR, _SLOPE = 0.04045, 0.0031308, 12.92
_CUBE, _ROOT, _LINE = 0.008856, 0.2068966, 7.787
#: Encoded values in -1 .. 1 in place of 0 .. 1: the bend.
_BEND = 2 * _ENCODED - 1
#: L, a and b of differences of the roots of X, Y and Z: a is 500 (X - Y), L is 116 Y - 16, b is 200 (Y - Z).
_LAB = (116.0, 500.0, 200.0)


def _with_shift(matrix: Tensor, shift: float) -> Tensor:
    """Return float32 (3, 4) for values (4, n) whose last row is 1: `matrix` times the other rows plus `shift`."""
    return torch.cat([matrix, matrix.sum(1, keepdim=True) * shift], 1).float()


#: Linear RGB -> X, Y, Z relative to white, and back. The shifts belong to the curves, see `_to_roots` and `_to_rgb`.
_TO_XYZ = _with_shift(_XYZ / _WHITE[:, None], -_BEND * 0.5 / _SLOPE)
_TO_RGB = _with_shift(torch.linalg.inv(_XYZ) * _WHITE, -_ROOT / _LINE)
#: Added to encoded values, to the root of Y, and to the result; as tensors, so that torch adds and multiplies at once.
_ENCODED_SHIFT = torch.tensor((0.5 + 0.055) / 1.055)
_ROOT_SHIFT = torch.tensor(-_LINE * _CUBE)
_RESULT_SHIFT = torch.tensor(-2 * 0.055 - 2 * _SLOPE * _LINEAR - 1)

#: Least standard deviation in Lab that is stretched to the reference's. Rounding a flat picture to 8 bits gives more,
#: so a channel below it has noise and no contrast.
FLOOR = 0.05

#: Pixels that are converted at a time: they stay in a processor's cache, or are enough to fill a GPU.
_PIECE = {"cpu": 2**17}
_PIECE_ELSEWHERE = 2**22


class Statistics(NamedTuple):
    """Mean and standard deviation of each CIE Lab channel (D65), float32 (3,), on the CPU."""

    mean: Tensor
    deviation: Tensor


def color_statistics(picture: Tensor) -> Statistics:
    """Measure a picture: float32 RGB (3, height, width) in -1 .. 1, on any device."""
    frame = picture.reshape(3, 1, -1)
    mean, deviation = _measure(_to_roots(frame, _Buffers(frame)))
    scale = torch.tensor(_LAB)
    mean = mean[:, 0].cpu() * scale - torch.tensor([16.0, 0.0, 0.0])
    return Statistics(mean, deviation[:, 0].cpu() * scale)


def match_color(frames: Tensor, reference: Statistics, strength: float = 1.0) -> None:
    """Pull each frame's Lab statistics to those of `reference`, in place.

    `frames` are float32 RGB (3, time, height, width) in -1 .. 1.

    `strength` 0 .. 1 mixes the result with the given frames; 0 changes nothing. A channel whose deviation is below
    `FLOOR` is stretched as one with that deviation; one without variance becomes the reference's mean. Frames are
    converted a few at a time, because Lab needs several copies in memory; each frame's result depends only on itself.
    Source: Reinhard et al., Color Transfer between Images (2001), as in MultiTalk, match_and_blend_colors.
    """
    if strength == 0:
        return
    scale = torch.tensor(_LAB)
    shift = (reference.mean + torch.tensor([16.0, 0.0, 0.0])) / scale
    wanted, floor = (tensor.to(frames.device)[:, None] for tensor in (reference.deviation / scale, FLOOR / scale))
    # A view also of a part of a longer video.
    flat = frames.view(3, frames.shape[1], -1)
    step = max(1, _piece(flat) // flat.shape[2])
    buffers = _Buffers(flat[:, :step])
    for begin in range(0, flat.shape[1], step):
        some = flat[:, begin : begin + step]
        before = some.clamp(-1, 1) if strength != 1 else some
        roots = _to_roots(some, buffers)
        deviation = _measure(roots)[1]
        roots.mul_((wanted / torch.maximum(deviation, floor))[:, :, None])
        _to_rgb(roots, shift, some, buffers)
        if strength != 1:
            torch.lerp(before, some, strength, out=some)


class _Buffers:
    """Memory for one chunk of frames (3, frames, pixels), used again for each: allocating costs more than computing."""

    def __init__(self, like: Tensor) -> None:
        self.roots = torch.empty_like(like, memory_format=torch.contiguous_format)
        size = min(like.shape[2], _piece(like)) * like.shape[1]
        self._four = like.new_ones(4 * size)
        self._three = like.new_empty(3 * size)
        self._filled = size
        # Copied to the device once, because the host waits for it.
        self.to_xyz, self.to_rgb = _TO_XYZ.to(like.device), _TO_RGB.to(like.device)

    def pair(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return memory (4, n) whose last row is 1, its other rows in the shape of `like`, and the same once more."""
        count = like[0].numel()
        four = self._four[: 4 * count].view(4, count)
        if four.shape[1] != self._filled:
            four[3], self._filled = 1, count
        return four, four[:3].view(like.shape), self._three[: 3 * count].view(like.shape)


def _piece(like: Tensor) -> int:
    return _PIECE.get(like.device.type, _PIECE_ELSEWHERE)


def _pieces(frames: Tensor) -> Iterator[slice]:
    """Cut the pixels of frames (3, frames, pixels)."""
    for begin in range(0, frames.shape[2], _piece(frames)):
        yield slice(begin, begin + _piece(frames))


def _to_roots(frames: Tensor, buffers: _Buffers) -> Tensor:
    """Return the differences of which Lab is made, (3, frames, pixels), of frames in -1 .. 1; see `_LAB`.

    Each curve is the sum of its part above the bend and of the line below it, which costs less than choosing one of
    two values for each pixel.
    """
    roots = buffers.roots[:, : frames.shape[1]]
    for piece in _pieces(frames):
        given = frames[:, :, piece]
        four, one, other = buffers.pair(given)
        torch.clamp(given, _BEND, 1, out=one)
        torch.add(_ENCODED_SHIFT, one, alpha=0.5 / 1.055, out=one).log2_().mul_(2.4).exp2_()
        torch.clamp(given, -1, _BEND, out=other)
        one.add_(other, alpha=0.5 / _SLOPE)
        torch.mm(buffers.to_xyz, four, out=other.flatten(1))
        torch.clamp(other, min=_CUBE, out=one)
        one.log2_().mul_(1 / 3).exp2_().add_(other.clamp_(max=_CUBE), alpha=_LINE)
        torch.add(_ROOT_SHIFT, one[1], out=roots[0, :, piece])
        torch.sub(one[0], one[1], out=roots[1, :, piece])
        torch.sub(one[1], one[2], out=roots[2, :, piece])
    return roots


def _to_rgb(roots: Tensor, shift: Tensor, result: Tensor, buffers: _Buffers) -> None:
    """Write frames in -1 .. 1 of `roots`, to whose channels `shift` is added first; clip colours out of gamut."""
    for piece in _pieces(roots):
        light, a, b = roots[:, :, piece]
        four, one, other = buffers.pair(roots[:, :, piece])
        torch.add(shift[0], light, out=one[1])
        torch.add(shift[1], a, out=one[0]).add_(one[1])
        # No Z below 0, as in scikit-image.
        torch.sub(one[1], b, out=one[2]).sub_(shift[2]).clamp_(min=0)
        torch.clamp(one, max=_ROOT, out=other)
        one.clamp_(min=_ROOT).pow_(3).add_(other, alpha=1 / _LINE)
        torch.mm(buffers.to_rgb, four, out=other.flatten(1))
        torch.clamp(other, _LINEAR, 1, out=one)
        one.log2_().mul_(1 / 2.4).exp2_().mul_(2 * 1.055)
        one.add_(other.clamp_(0, _LINEAR), alpha=2 * _SLOPE)
        torch.add(_RESULT_SHIFT, one, out=result[:, :, piece])


def _measure(roots: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each frame's channels, (3, frames), and subtract the mean in place."""
    mean = roots.mean(2)
    roots.sub_(mean[:, :, None])
    return mean, torch.linalg.vector_norm(roots, dim=2) / roots.shape[2] ** 0.5
