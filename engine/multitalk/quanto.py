"""optimum-quanto checkpoints (int8, float8) -> dense tensors, without optimum-quanto.

A quantised Linear `m` is stored as `m.weight._data` (out, in), `m.weight._scale` (out, 1) and unused
`m.input_scale`, `m.output_scale`; a JSON map lists the modules: {m: {"weights": "qint8", "activations": "none"}}.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from engine.errors import SourceError

_DTYPES = {"qint8": torch.int8, "qfloat8": torch.float8_e4m3fn, "qfloat8_e4m3fn": torch.float8_e4m3fn}
_UNUSED = (".input_scale", ".output_scale")


def dequantize(
    state: Mapping[str, Tensor], quantised: Mapping[str, Mapping[str, Any]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """Return the dense state dict in `dtype` of a quanto state dict and its map; names are kept.

    Raises SourceError where map and tensors contradict each other.
    """
    return dict(iter_dense(state.items(), quantised, dtype))


def iter_dense(
    tensors: Iterable[tuple[str, Tensor]], quantised: Mapping[str, Mapping[str, Any]], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor]]:
    """Stream (name, tensor) pairs of a quanto checkpoint as dense tensors, holding at most unpaired halves.

    Tensors of the map's modules come out as `m.weight` = data * scale, multiplied in float32. Raises SourceError for
    a kind of quantisation that is not read, a half without its other half, a dtype the map does not say, or a module
    of the map that the checkpoint does not have.
    """
    for module, kinds in quantised.items():
        if kinds.get("weights") not in _DTYPES:
            raise SourceError(
                f"{module} is quantised as {kinds.get('weights')!r}",
                field="quantisation map",
                hint=f"readable: {', '.join(_DTYPES)}",
            )
    waiting: dict[str, dict[str, Tensor]] = {}
    done: set[str] = set()
    for name, tensor in tensors:
        if name.endswith(_UNUSED) and name.rpartition(".")[0] in quantised:
            continue
        module, _, half = name.rpartition(".weight.")
        if half not in ("_data", "_scale"):
            if name.removesuffix(".weight") in quantised and name.endswith(".weight"):
                raise SourceError(f"{name} is dense, its map says it is quantised", field="quantisation map")
            yield name, tensor.to(dtype)
            continue
        if module not in quantised:
            raise SourceError(f"{name} is quantised, but not in the map", field="quantisation map")
        halves = waiting.setdefault(module, {})
        halves[half] = tensor
        if len(halves) == 2:
            yield f"{module}.weight", _dense(module, quantised[module]["weights"], **waiting.pop(module)).to(dtype)
            done.add(module)
    missing = sorted((set(quantised) - done) | set(waiting))
    if missing:
        raise SourceError(
            f"the checkpoint lacks weights of {len(missing)} quantised modules: {', '.join(missing[:5])}",
            field="quantisation map",
            hint="map and checkpoint must be of one model",
        )


def _dense(module: str, kind: str, _data: Tensor, _scale: Tensor) -> Tensor:
    if _data.dtype != _DTYPES[kind]:
        raise SourceError(f"{module} holds {_data.dtype}, its map says {kind}", field="quantisation map")
    return _data.float() * _scale.float()
