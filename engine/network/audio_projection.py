"""Audio windows -> audio tokens, one set per latent frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.network.compat import FP32LayerNorm


def group_windows(windows: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Group per-frame audio windows by latent frame.

    `windows` is (n, 1 + stride * (T - 1), W, layers, channels) with the frame itself in slot W // 2. Returns the first
    frame's window (n, 1, W, layers, channels) and, for the other latent frames, (n, T - 1, W + stride - 1, layers,
    channels): the past half and the centre of the group's first frame, the centres of the middle frames, the centre
    and future half of the last. Source: MultiTalk, wan/modules/multitalk_model.py, forward.
    """
    middle = windows.shape[2] // 2
    first, rest = windows[:, :1], windows[:, 1:].unflatten(1, (-1, stride))  # type: ignore[no-untyped-call]
    if stride == 1:
        return first, rest[:, :, 0]
    grouped = torch.cat(
        [rest[:, :, 0, : middle + 1], rest[:, :, 1:-1, middle], rest[:, :, -1, middle:]],
        dim=2,
    )
    return first, grouped


class AudioProjection(nn.Module):
    """Project grouped audio windows to `tokens` tokens of `output_dim` for each latent frame.

    Parameter names are the reference's: `proj1` (first frame), `proj1_vf` (the others), `proj2`, `proj3`, `norm`.
    The LayerNorm runs in float32, as in InfiniteTalk.
    """

    def __init__(
        self,
        *,
        window: int,
        stride: int,
        layers: int,
        channels: int,
        intermediate_dim: int,
        output_dim: int,
        tokens: int,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.tokens = tokens
        self.proj1 = nn.Linear(window * layers * channels, intermediate_dim)
        self.proj1_vf = nn.Linear((window + stride - 1) * layers * channels, intermediate_dim)
        self.proj2 = nn.Linear(intermediate_dim, intermediate_dim)
        self.proj3 = nn.Linear(intermediate_dim, tokens * output_dim)
        self.norm = FP32LayerNorm(output_dim)

    def forward(self, windows: Tensor) -> Tensor:
        """Map windows (n, F, W, layers, channels) to tokens (n, T, tokens, output_dim), T = 1 + (F - 1) / stride."""
        first, rest = group_windows(windows, self.stride)
        hidden = torch.cat([F.relu(self.proj1(first.flatten(2))), F.relu(self.proj1_vf(rest.flatten(2)))], dim=1)
        hidden = self.proj3(F.relu(self.proj2(hidden)))
        tokens: Tensor = self.norm(hidden.unflatten(2, (self.tokens, -1)))
        return tokens
