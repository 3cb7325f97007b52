"""Low-bit weights with separate scales, as ComfyUI, Kijai and lightx2v store them -> dense weights.

`X.weight` holds float8 (or int8) values, another tensor their scale: one number for all, one per row, one per column or
one per block of rows and columns; the weight is their product. Sources: ComfyUI, comfy/ops.py (scaled_fp8_ops) and
comfy/quant_ops.py; kijai/ComfyUI-WanVideoWrapper, fp8_optimization.py; DeepSeek-V3's weight_scale_inv for blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.components import Stored
from engine.errors import SourceError
from engine.loading.quanto import Quantised

#: ComfyUI's formats whose layers are just the product of values and scales.
_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise", "int8_rowwise")
#: Further entries of ComfyUI's notes that do not affect the values.
_HARMLESS = {"format", "full_precision_matrix_mult", "full_precision_mm", "orig_dtype", "orig_shape", "params"}
#: Maximum length of a note about a layer.
_NOTE_BYTES = 4096


@dataclass(frozen=True)
class Scaled:
    """A low-bit weight (out, in), and its scale in a shape that `spread` accepts."""

    data: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        """Raise ValueError for a scale that does not fit the weight."""
        blocks(tuple(self.scale.shape), tuple(self.data.shape))

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def has_rows(self) -> bool:
        """Whether no row has more than one scale."""
        return blocks(tuple(self.scale.shape), tuple(self.data.shape)) in ((0, 0), (1, 0))

    def rows(self) -> Quantised:
        """Return the same weight with one scale for each row. Call it only if `has_rows`."""
        scale = self.scale.float().reshape(-1, 1)
        return Quantised(self.data, scale.expand(self.data.shape[0], 1))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, multiplied in float32."""
        return (self.data.float() * spread(self.scale.float(), tuple(self.data.shape))).to(dtype)


def blocks(scale: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, int]:
    """Return how many rows and columns share one number of a scale; 0 means all. Raises ValueError.

    A scale with one dimension and as many numbers as rows has one number per row.
    """
    count = torch.Size(scale).numel()
    if count == 1:
        return 0, 0
    if len(weight) != 2:
        raise ValueError(f"a scale of shape {scale} beside a weight of shape {weight}")
    # Blocks within a row may have a dimension of their own at the end.
    shape = scale[:2] if len(scale) == 3 and scale[2] == 1 else scale
    if len(shape) == 1 and shape[0] == weight[0]:
        shape = (shape[0], 1)
    sides = []
    for numbers, values in zip(shape, weight, strict=False):
        side = -(-values // numbers) if numbers else 0
        if not side or -(-values // side) != numbers:
            raise ValueError(f"a scale of shape {scale} beside a weight of shape {weight}")
        sides.append(0 if numbers == 1 else side)
    if len(shape) != 2:
        raise ValueError(f"a scale of shape {scale} beside a weight of shape {weight}")
    return sides[0], sides[1]


def spread(scale: Tensor, weight: tuple[int, ...]) -> Tensor:
    """Return a scale in a shape that broadcasts to a weight of shape `weight`. Raises ValueError."""
    rows, columns = blocks(tuple(scale.shape), weight)
    if not rows and not columns:
        return scale.reshape(())
    spread = scale.reshape(scale.shape[0], -1)
    for axis, side in ((0, rows), (1, columns)):
        if side > 1:
            spread = spread.repeat_interleave(side, dim=axis).narrow(axis, 0, weight[axis])
    return spread


def check_notes(path: Path, stored: Mapping[str, Stored], metadata: Mapping[str, Any]) -> None:
    """Raise SourceError if ComfyUI's notes say that weights are not just the product of values and scales.

    For example rotated or 4-bit values: they could be read, but would be wrong.
    """
    for layer, note in _notes(path, stored, metadata):
        kind = note.get("format")
        more = sorted(key for key, value in note.items() if key not in _HARMLESS and value not in (False, None))
        if kind not in _FORMATS or more:
            extra = f" with {', '.join(more)[:80]}" if more else ""
            raise SourceError(
                f"{path} holds {layer[:80]} quantised as {str(kind)[:40]!r}{extra}, which is not supported",
                field="source",
                hint="use the file in 16 bits, as fp8_scaled or as GGUF (quant=gguf)",
            )


def _notes(
    path: Path, stored: Mapping[str, Stored], metadata: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        header = json.loads(metadata.get("_quantization_metadata", "{}"))
        layers = header.get("layers", {}) if isinstance(header, dict) else {}
        yield from ((str(layer), note) for layer, note in layers.items() if isinstance(note, dict))
        with path.open("rb") as file:
            for name, where in stored.items():
                if name.endswith(".comfy_quant") and where.size <= _NOTE_BYTES:
                    file.seek(where.offset)
                    note = json.loads(file.read(where.size))
                    yield name.removesuffix(".comfy_quant"), note if isinstance(note, dict) else {}
    except (ValueError, AttributeError, RecursionError, OSError) as error:
        raise SourceError(
            f"{path} holds a note on quantisation that cannot be read: {error}",
            field="source",
            hint="use the file in 16 bits",
        ) from error
