"""Self-attention before weights are read: where it runs, and which kernel is chosen for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenGrid:
    """The order of the tokens of one forward: frame by frame, row by row, and the layer that attends."""

    #: Latent frames, and rows and columns of tokens of each.
    frames: int
    rows: int
    columns: int
    #: Index of the layer, and the number of layers.
    layer: int = 0
    layers: int = 1

    @property
    def frame(self) -> int:
        """Tokens of one frame."""
        return self.rows * self.columns


#: (query, key, value, grid) -> output, each (1, frames * rows * columns, heads, head_dim) in one dtype.
Attend: TypeAlias = "Callable[[Tensor, Tensor, Tensor, TokenGrid], Tensor]"


@dataclass(frozen=True)
class AttentionSite:
    """What is known of the machine and the model before any weights are read."""

    #: "cuda" or "cpu".
    device: str
    #: "float32" or "bfloat16", as queries, keys and values will be.
    dtype: str
    #: Compute capability of the card; None: not known, or no card.
    capability: tuple[int, int] | None = None
    #: Whether torch is built for AMD's ROCm, whose devices are also called "cuda".
    rocm: bool = False
    #: Number of processes that share a forward (parallel=ulysses).
    processes: int = 1


@dataclass(frozen=True)
class AttentionChoice:
    """A kernel, and why it was chosen."""

    #: Name in diffusers' attention dispatch; with `attend` the name and settings of the own computation.
    kernel: str
    #: One sentence for plans and answers; "": it was asked for by name.
    reason: str = ""
    #: How results differ from exact attention, as a warning; "": they do not.
    note: str = ""
    #: Computes self-attention in place of a kernel of diffusers.
    attend: Attend | None = None
