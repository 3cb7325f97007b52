"""The place of a tensor in a file of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Stored:
    """The place of a tensor in a file."""

    file: Path
    #: Its name in the file.
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    #: Offset of the tensor from the file's start, and its size, in bytes.
    offset: int
    size: int
    #: Whether it is used on the CPU exactly as it is stored, so that a reader may map it instead of copying it.
    stays: bool = False
