"""optimum-quanto checkpoints (int8, float8) -> dense or quantised tensors, without optimum-quanto.

A quantised Linear `m` is stored as `m.weight._data` (out, in), `m.weight._scale` (out, 1) and unused
`m.input_scale`, `m.output_scale`; a JSON map lists the modules: {m: {"weights": "qint8", "activations": "none"}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import MissingExtra, SourceError

_DTYPES = {"qint8": torch.int8, "qfloat8": torch.float8_e4m3fn, "qfloat8_e4m3fn": torch.float8_e4m3fn}
_UNUSED = (".input_scale", ".output_scale")


@dataclass(frozen=True)
class Quantised:
    """A weight with one scale per row: `data` (out, in), int8 or float8, times `scale` (out, 1)."""

    data: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, multiplied in float32."""
        return (self.data.float() * self.scale.float()).to(dtype)

    def kept(self, dtype: torch.dtype) -> Tensor:
        """Return torchao's quantised tensor, for a Linear that computes in `dtype`. Raises MissingExtra."""
        data, scale = self.data.clone(), self.scale.to(torch.float32, copy=True)
        try:
            if data.dtype == torch.int8:
                from torchao.quantization import Int8Tensor

                weight: Tensor = Int8Tensor(data, scale, block_size=[1, data.shape[1]], dtype=dtype)
            else:
                from torchao.quantization import Float8Tensor

                weight = Float8Tensor(data, scale, block_size=[1, data.shape[1]], dtype=dtype)
        except ImportError as error:
            raise MissingExtra(
                "quant", "torchao", "quant", why="to keep weights in the format of a quanto file"
            ) from error
        return weight


def quantise(weight: Tensor, dtype: torch.dtype) -> Quantised:
    """Quantise a weight (out, in) to int8 or float8_e4m3fn with one scale per row, from the row's largest value."""
    most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / most
    data = weight.float() / scale
    return Quantised((data.round() if dtype == torch.int8 else data).to(dtype), scale)


def dequantize(
    state: Mapping[str, Tensor], quantised: Mapping[str, Mapping[str, Any]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the dense state dict in `dtype` of a quanto state dict and its map; names are kept.

    Raises SourceError where map and tensors contradict each other.
    """
    joined = join_halves(state.items(), quantised)
    return {name: one.dense(dtype) if isinstance(one, Quantised) else one.to(dtype) for name, one in joined}


def join_halves(
    tensors: Iterable[tuple[str, Tensor]], quantised: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, Tensor | Quantised]]:
    """Yield the (name, tensor) pairs of a quanto checkpoint with data and scale joined; holds only unpaired tensors.

    Raises SourceError for an unsupported quantisation, data without scale or the reverse, a dtype that differs from the
    map, or a module of the map that the checkpoint does not have.
    """
    for module, kinds in quantised.items():
        if kinds.get("weights") not in _DTYPES:
            raise SourceError(
                f"{module} is quantised as {kinds.get('weights')!r}",
                field="quantisation map",
                hint=f"readable: {', '.join(_DTYPES)}",
            )
    waiting: dict[str, dict[str, Tensor]] = {}
    joined: set[str] = set()
    for name, tensor in tensors:
        if name.endswith(_UNUSED) and name.rpartition(".")[0] in quantised:
            continue
        module, _, half = name.rpartition(".weight.")
        if half not in ("_data", "_scale"):
            if name.removesuffix(".weight") in quantised and name.endswith(".weight"):
                raise SourceError(f"{name} is dense, but the map says it is quantised", field="quantisation map")
            yield name, tensor
            continue
        if module not in quantised:
            raise SourceError(f"{name} is quantised, but not in the map", field="quantisation map")
        halves = waiting.setdefault(module, {})
        halves[half] = tensor
        if len(halves) == 2:
            yield f"{module}.weight", _join(module, quantised[module]["weights"], **waiting.pop(module))
            joined.add(module)
    missing = sorted((set(quantised) - joined) | set(waiting))
    if missing:
        raise SourceError(
            f"the checkpoint lacks weights of {len(missing)} quantised modules: {', '.join(missing[:5])}",
            field="quantisation map",
            hint="map and checkpoint must belong to the same model",
        )


def _join(module: str, kind: str, _data: Tensor, _scale: Tensor) -> Quantised:
    if _data.dtype != _DTYPES[kind]:
        raise SourceError(f"{module} holds {_data.dtype}, but the map says {kind}", field="quantisation map")
    return Quantised(_data, _scale)
