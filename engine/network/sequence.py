"""Sequence parallelism: every process has all weights and a part of each window's tokens.

Ulysses (arXiv 2309.14509): for self-attention the parts are exchanged, so that each process has all tokens of some
heads, and exchanged back. The exchange is diffusers'. Its hooks (`_cp_plan`) are not used: they split inside the first
block's call, within the step caches, whose residuals would then have another length than the blocks' output. Its
attention is not used either: it masks padding, which excludes kernels without masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from engine.errors import ConfigError, ProcessLost
from engine.network.compat import AttentionBackendName, SeqAllToAllDim, dispatch_attention_fn


@dataclass(frozen=True)
class Shard:
    """The part of a window's tokens that this process has: `length` of `total`, beginning at `start`.

    All parts have the same length. If the tokens cannot be divided evenly, the last one is repeated at the end:
    repeated tokens stay equal to it in every layer, so they change no minimum and no maximum. They are not used as
    keys, and not gathered. Methods raise ProcessLost if another process has ended.
    """

    group: Any
    rank: int
    size: int
    total: int
    #: Tokens of one latent frame.
    frame: int

    @property
    def length(self) -> int:
        """Tokens of each process."""
        return -(-self.total // self.size)

    @property
    def start(self) -> int:
        """The index of this process' first token among all tokens."""
        return self.rank * self.length

    @property
    def lead(self) -> int:
        """Tokens of its first frame that are before this process' part."""
        return self.start % self.frame

    def select(self, tokens: Tensor) -> Tensor:
        """Return this process' part of all tokens (1, total, ...)."""
        if self.start + self.length <= self.total:
            return tokens.narrow(1, self.start, self.length)
        places = torch.arange(self.start, self.start + self.length, device=tokens.device)
        return tokens.index_select(1, places.clamp(max=self.total - 1))

    def select_frames(self, frames: Tensor) -> Tensor:
        """Return the latent frames (T, ...) of which this process has tokens."""
        end = self.start + self.length
        places = torch.arange(self.start // self.frame, -(-end // self.frame), device=frames.device)
        return frames.index_select(0, places.clamp(max=len(frames) - 1))

    def fill_frames(self, tokens: Tensor, frames: int) -> Tensor:
        """Pad tokens (1, length, heads, D) with zeros on both sides to `frames` whole frames."""
        behind = frames * self.frame - self.lead - self.length
        return F.pad(tokens, (0, 0, 0, 0, self.lead, behind))

    def cut_frames(self, tokens: Tensor) -> Tensor:
        """Remove the padding of `fill_frames`: (1, frames * frame, ...) -> (1, length, ...)."""
        return tokens.narrow(1, self.lead, self.length)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, backend: AttentionBackendName | None) -> Tensor:
        """Attend from this process' tokens to all tokens; (1, length, heads, D) each."""
        with together():
            query, key, value = (SeqAllToAllDim.apply(self.group, part, 2, 1) for part in (query, key, value))
        output = dispatch_attention_fn(query, key[:, : self.total], value[:, : self.total], backend=backend)
        with together():
            attended: Tensor = SeqAllToAllDim.apply(self.group, output, 1, 2)
        return attended

    def first(self, tokens: Tensor, count: int) -> Tensor:
        """Return the first `count` of all tokens, of which `tokens` (1, length, ...) are this process' part."""
        parts = []
        for owner in range(-(-count // self.length)):
            part = tokens[:, : min(self.length, count - owner * self.length)]
            part = part.contiguous() if owner == self.rank else torch.empty_like(part).contiguous()
            with together():
                dist.broadcast(part, src=dist.get_global_rank(self.group, owner), group=self.group)
            parts.append(part)
        return torch.cat(parts, dim=1)

    def extent(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimum of all processes' `low` and the maximum of their `high`, tensors of one shape."""
        both = torch.stack([-low, high])
        with together():
            dist.all_reduce(both, op=dist.ReduceOp.MAX, group=self.group)
        return -both[0], both[1]

    def gather(self, tokens: Tensor) -> Tensor:
        """Return all tokens (1, total, D), of which `tokens` (1, length, D) are this process' part."""
        gathered = tokens.new_empty(self.size * self.length, *tokens.shape[2:])
        with together():
            dist.all_gather(list(gathered.chunk(self.size)), tokens[0].contiguous(), group=self.group)
        return gathered[None, : self.total]


@contextmanager
def together() -> Iterator[None]:
    """Raise ProcessLost if a collective operation fails, which happens when a process has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ProcessLost() from error


def check_heads(heads: int, processes: int) -> None:
    """Raise ConfigError if `heads` attention heads cannot be divided evenly among `processes`."""
    if heads % processes:
        fitting = [str(count) for count in range(2, heads + 1) if heads % count == 0]
        raise ConfigError(
            f"{heads} attention heads cannot be divided evenly among {processes} processes",
            field="parallel",
            hint=f"start {', '.join(fitting[:-1])} or {fitting[-1]}" if len(fitting) > 1 else f"start {heads}",
        )
