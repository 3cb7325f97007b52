"""Latents or frames -> small strips, for people who wait; the video does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from engine.data import Frames, Preview, Window
from engine.media.thumbnails import jpeg_strip

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

#: Added to the squares of the latents' channels, in units of their mean square: some may be almost constant.
_RIDGE = 1e-3


@dataclass(frozen=True)
class LatentColors:
    """A linear map from the channels of a latent position to its colour, as a cheap substitute for the decoder."""

    #: float32 (channels, 3) and (3,): pixels in -1 .. 1.
    factors: Tensor
    bias: Tensor

    def pictures(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Return latents (channels, n, h, w) as uint8 RGB (n, h, w, 3)."""
        pixels = torch.einsum("cnhw,cd->nhwd", latents.float(), self.factors.to(latents.device))
        levels = ((pixels + self.bias.to(latents.device) + 1) * 127.5).clamp_(0, 255)
        return levels.to(torch.uint8).cpu().numpy()


def fit_colors(latents: Tensor, picture: Tensor) -> LatentColors:
    """Fit the map by least squares to a picture, float32 (3, H, W) in -1 .. 1, and its latents (channels, h, w).

    So it suits every model, and the colours of this video.
    """
    channels, height, width = latents.shape
    colors = adaptive_avg_pool2d(picture.cpu().double()[None], (height, width))[0].reshape(3, -1).T
    points = latents.cpu().double().reshape(channels, -1).T
    mean, middle = points.mean(0), colors.mean(0)
    points, colors = points - mean, colors - middle
    squares = points.T @ points
    squares += torch.eye(channels, dtype=squares.dtype) * (_RIDGE * squares.diagonal().mean() + 1e-12)
    factors = torch.linalg.solve(squares, points.T @ colors)
    return LatentColors(factors.float(), (middle - mean @ factors).float())


class Previews:
    """Makes the previews of a request's windows, and of their steps if asked to."""

    def __init__(
        self,
        report: Callable[[Preview], None] | None,
        *,
        steps: bool,
        width: int,
        frames: int,
        follow: Callable[[Window, int, Tensor, Tensor, float], None] | None = None,
    ) -> None:
        """`report` gets each preview: `frames` frames (fewer if a window has fewer), each `width` pixels wide.

        None: there are no previews. `follow` gets each step: window, number, latents, latents without noise, time.
        """
        self._report, self._width, self._frames = report, width, frames
        self._steps, self._follow = steps, follow
        self._colors: LatentColors | None = None
        self._window: Window | None = None

    def begin(self, window: Window, shown: tuple[Tensor, Tensor] | None) -> None:
        """Begin a window; `shown`: latents (channels, h, w), and the picture that they show; None: not known.

        The picture is float32 (3, H, W) in -1 .. 1. Without it steps are not shown.
        """
        self._window = window
        if self._steps and self._colors is None and shown is not None:
            self._colors = fit_colors(*shown)

    def step(self, number: int, latents: Tensor, velocity: Tensor, time: float) -> None:
        """Show what a step predicts: `latents`, float32 (16, T, h, w), without the noise that `velocity` finds in them.

        `time` is the time of the latents, 0 .. 1000. On a CUDA device the host waits for the step.
        """
        if self._follow is not None and self._window is not None:
            self._follow(self._window, number, latents, latents - time / 1000 * velocity, time)
        if self._colors is None:
            return
        chosen = torch.tensor(_spread(latents.shape[1], self._frames), device=latents.device)
        predicted = latents.index_select(1, chosen) - time / 1000 * velocity.index_select(1, chosen)
        self._send(self._colors.pictures(predicted), number)

    def done(self, frames: Frames) -> None:
        """Show a window's finished frames."""
        if self._report is not None and len(frames.pictures):
            self._send(frames.pictures[_spread(len(frames.pictures), self._frames)], 0)

    def _send(self, pictures: npt.NDArray[np.uint8], step: int) -> None:
        if self._report is not None and self._window is not None:
            strip = jpeg_strip(pictures, self._width)
            self._report(Preview(strip, len(pictures), self._window.index + 1, step))


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, from the first to the last."""
    number = min(count, most)
    return [round(index * (count - 1) / max(1, number - 1)) for index in range(number)]
