"""Sparse self-attention: the further away a frame is in time, the smaller the part of it that a token sees.

The pattern follows radial attention (Li et al. 2025, arXiv 2506.19852): whole frames nearby, half of a frame from twice
that distance on, a quarter from four times, and so on, around the token's own place. It is computed with torch's dense
attention on gathered keys, one call for each latent frame, so it runs wherever torch does, without an own kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig, within
from engine.config.bounds import check_part
from engine.data import AttentionChoice, AttentionSite, TokenGrid
from engine.errors import ConfigError
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class RadialConfig(ComponentConfig):
    """Sparse: of frames further away in time a token sees a smaller part (arXiv 2506.19852); changes the video."""

    name: str = "radial"
    #: Parts of a frame that attend together; the smallest part of another frame that they see is as large.
    parts: int = field(default=4, metadata=within(1, 64))
    #: Distance in latent frames up to which frames are seen whole; at 2, 4, 8 times it, 1/2, 1/4, 1/8 of them.
    near: int = field(default=1, metadata=within(1, 1000))
    #: First latent frames that all tokens see whole: the picture, and motion frames.
    first: int = field(default=1, metadata=within(0, 1000))
    #: First layers of the network that stay dense.
    dense_layers: int = field(default=1, metadata=within(0, 1000))


class Radial:
    """Computes the pattern of a `RadialConfig`. Raises ConfigError for values out of range."""

    def __init__(self, config: RadialConfig) -> None:
        check_part(config, "attention")
        self._config = config

    def resolve(self, device: str) -> str:
        """Return the name with all settings, which goes into a video's provenance."""
        config = self._config
        settings = (f"{key}={getattr(config, key)}" for key in ("parts", "near", "first", "dense_layers"))
        return f"radial({', '.join(settings)})"

    def choose(self, site: AttentionSite) -> AttentionChoice:
        """Return the own computation. Raises ConfigError where several processes share a forward."""
        if site.processes > 1:
            raise ConfigError(
                "attention=radial does not work if several processes share a forward",
                field="attention",
                hint="choose attention=sdpa, or parallel=none",
            )
        note = "attention=radial leaves out far tokens: the video differs from that of full attention"
        return AttentionChoice(self.resolve(site.device), note=note, attend=self.attend)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, grid: TokenGrid) -> Tensor:
        """Attend over tokens (1, frames * rows * columns, heads, D) of `grid`; returns that shape."""
        import torch

        if grid.layer < self._config.dense_layers:
            return _dense(query, key, value)
        parts, frames = parts_of(grid.frame, self._config.parts), range(grid.frames)
        by_frame = (grid.frames, grid.frame, *query.shape[2:])
        queries, keys, values = (tensor[0].reshape(by_frame) for tensor in (query, key, value))
        outputs = []
        for frame in frames:
            widths = [self.width(frame, other, grid.frame, parts) for other in frames]
            chosen = queries[frame]
            if min(widths) == grid.frame:
                outputs.append(_dense(chosen[None], key, value)[0])
                continue
            # (parts, tokens of a part, heads, D), and the keys that each part sees.
            grouped = chosen.reshape(parts, -1, *query.shape[2:])
            attended = _dense(grouped, _gather(keys, widths, parts), _gather(values, widths, parts))
            outputs.append(attended.flatten(0, 1))
        return torch.cat(outputs)[None]

    def width(self, frame: int, other: int, tokens: int, parts: int) -> int:
        """Return how many of the `tokens` of frame `other` a part of `frame` sees; a part is `tokens` / `parts`."""
        times = abs(frame - other) // self._config.near
        if other < self._config.first or times < 2:
            return tokens
        return max(tokens // parts, -(-tokens // (1 << (times.bit_length() - 1))))

    def share(self, grid: TokenGrid) -> float:
        """Return the share of all pairs of tokens that a sparse layer computes."""
        parts, frames = parts_of(grid.frame, self._config.parts), range(grid.frames)
        seen = sum(self.width(frame, other, grid.frame, parts) for frame in frames for other in frames)
        return seen / (grid.frames**2 * grid.frame)


def parts_of(tokens: int, most: int) -> int:
    """Return the largest number of equal parts, at most `most`, into which `tokens` can be divided."""
    return next(parts for parts in range(min(most, tokens), 0, -1) if tokens % parts == 0)


def begin(part: int, parts: int, tokens: int, width: int) -> int:
    """Return where the `width` tokens that a part sees begin: around its middle, moved inside the frame."""
    middle = (2 * part + 1) * tokens // (2 * parts)
    return min(max(middle - width // 2, 0), tokens - width)


def _gather(frames: Tensor, widths: Sequence[int], parts: int) -> Tensor:
    """Return the tokens (parts, sum of `widths`, heads, D) that each part sees of frames (T, tokens, heads, D)."""
    import torch

    tokens = frames.shape[1]
    rows = [
        frames[other].narrow(0, begin(part, parts, tokens, width), width)
        for part in range(parts)
        for other, width in enumerate(widths)
    ]
    # One copy.
    return torch.cat(rows).reshape(parts, -1, *frames.shape[2:])


def _dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from torch.nn import functional as F

    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Radial, RadialConfig)
