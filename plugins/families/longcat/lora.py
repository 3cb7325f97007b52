"""LoRA files in the published format, whose fused layers have several parts -> ordinary pairs.

The key of a layer is "lora" and the parts of its name, each after "___lorahyphen___". `lora_down.weight` has
parts * rank rows; part k maps its rows to the k-th slice of the outputs by `lora_up.blocks.k.weight`. A layer with one
part has `lora_up.weight`. The change is alpha_scale * up * down; `alpha_scale` is alpha / rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import SourceError
from engine.imports.deferred import without_torchao
from engine.loading.safetensors_reader import stored_tensors

_HYPHEN = "___lorahyphen___"
_PREFIX = f"lora{_HYPHEN}"
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha_scale"
_PART = ".lora_up.blocks."


@dataclass(frozen=True)
class Pair:
    """The change of one linear layer, times `scale`; a fused layer has several parts.

    Part k changes its own slice of the outputs: `ups[k]` (outputs of the slice, r) times the next r rows of `down`
    (rows of all parts, in).
    """

    down: Tensor
    ups: tuple[Tensor, ...]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it changes."""
        return sum(len(up) for up in self.ups), self.down.shape[1]

    def delta(self) -> Tensor:
        """Return the change, (out, in), float32."""
        downs = torch.split(self.down.float(), [up.shape[1] for up in self.ups])
        return self.scale * torch.cat([up.float() @ down for up, down in zip(self.ups, downs, strict=True)])

    def up(self) -> Tensor:
        """Return one matrix for all parts, (out, rows of `down`), float32: zero outside of the parts' blocks."""
        joined: Tensor = torch.block_diag(*(up.float() for up in self.ups))  # type: ignore[no-untyped-call]
        return self.scale * joined


def is_fused_lora(names: Mapping[str, Any]) -> bool:
    """Return whether tensors with these names are a LoRA in this format."""
    return any(name.startswith(_PREFIX) for name in names)


@dataclass(frozen=True)
class FusedLora:
    """A LoRA, by layer."""

    pairs: Mapping[str, Pair]

    def check(self, model: nn.Module) -> set[str]:
        """Return the names of the weights it changes. Raises SourceError unless all of them fit `model`."""
        modules = dict(model.named_modules())
        for name, pair in self.pairs.items():
            layer = modules.get(name)
            weight = getattr(layer, "weight", None)
            if not isinstance(layer, nn.Linear) or weight is None:
                raise SourceError(
                    f"the LoRA changes {name}, which this network does not have",
                    field="lora",
                    hint="use the LoRA of this model",
                )
            if pair.shape != tuple(weight.shape):
                raise SourceError(
                    f"the LoRA's change of {name} does not fit a weight of {tuple(weight.shape)}",
                    field="lora",
                    hint="use the LoRA of this model",
                )
        return {f"{name}.weight" for name in self.pairs}

    def delta(self, weight: str) -> Tensor:
        """Return the change of a weight, (out, in), float32."""
        return self.pairs[weight.removesuffix(".weight")].delta()

    def attach(self, model: Any, name: str = "distilled", multiplier: float = 1.0) -> None:
        """Add the LoRA beside the layers of `model`, switched on; weights are unchanged, and may be in 8 bits.

        A fused layer's parts become one pair of their total rank. Raises SourceError unless it fits.
        """
        self.check(model)
        adapter: dict[str, Tensor] = {}
        for layer, pair in self.pairs.items():
            bias = getattr(model.get_submodule(layer), "bias", None)
            dtype = torch.float32 if bias is None else bias.dtype
            adapter[f"{layer}.lora_A.weight"] = pair.down.to(dtype)
            adapter[f"{layer}.lora_B.weight"] = pair.up().to(dtype)
        # PEFT asks of every layer whether torchao has quantised it.
        with without_torchao():
            model.load_lora_adapter(adapter, prefix=None, adapter_name=name)
        model.set_adapters([name], [multiplier])


def read_lora(path: Path) -> FusedLora:
    """Read a LoRA file. Raises SourceError if it is damaged, in another format, or incomplete."""
    from safetensors.torch import load_file

    stored_tensors(path)
    return sort_lora(load_file(path), path.name)


def sort_lora(tensors: Mapping[str, Tensor], file: str = "the LoRA") -> FusedLora:
    """Return the LoRA of tensors by their names in the file. Raises SourceError."""
    if not is_fused_lora(tensors):
        raise SourceError(
            f"{file} has no key that begins with {_PREFIX}",
            field="lora",
            hint="the engine's own LoRA loader reads other formats",
        )
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        layer, part = _split(key)
        if not key.startswith(_PREFIX) or not part:
            raise SourceError(f"{file}: {key} is no part of a LoRA", field="lora", hint="get this file again")
        layers.setdefault(layer, {})[part] = tensor
    return FusedLora({layer: _pair(layer, parts, file) for layer, parts in layers.items()})


def _split(key: str) -> tuple[str, str]:
    for ending in (_DOWN, _UP, _ALPHA):
        if key.endswith(ending):
            return _module(key.removesuffix(ending)), ending
    before, mark, rest = key.partition(_PART)
    number = rest.removesuffix(".weight")
    return (_module(before), number) if mark and number.isdigit() else (key, "")


def _module(flat: str) -> str:
    return flat.removeprefix(_PREFIX).replace(_HYPHEN, ".")


def _pair(layer: str, parts: Mapping[str, Tensor], file: str) -> Pair:
    numbers = sorted(int(part) for part in parts if part.isdigit())
    ups = [parts[_UP]] if _UP in parts else [parts[str(number)] for number in numbers]
    whole = (
        _DOWN in parts
        and bool(ups)
        and not (numbers and _UP in parts)
        and numbers == list(range(len(numbers)))
        and parts[_DOWN].ndim == 2
        and all(up.ndim == 2 for up in ups)
        and sum(up.shape[1] for up in ups) == parts[_DOWN].shape[0]
        and parts.get(_ALPHA, torch.ones(())).numel() == 1
    )
    if not whole:
        raise SourceError(f"{file}: the parts of {layer} do not fit each other", field="lora", hint="get it again")
    scale = float(parts[_ALPHA]) if _ALPHA in parts else 1.0
    return Pair(parts[_DOWN], tuple(ups), scale)
