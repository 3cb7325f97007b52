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

from engine.imports.deferred import without_torchao
from engine.loading.model import Loras
from engine.loading.safetensors_reader import stored_tensors
from plugins.families.longcat.lora_keys import ALPHA, DOWN, check_layer, sort_shapes, split_key, ups_of


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


@dataclass(frozen=True)
class FusedLora:
    """A LoRA, by layer."""

    pairs: Mapping[str, Pair]

    def check(self, model: nn.Module) -> set[str]:
        """Return the names of the weights it changes. Raises SourceError unless all of them fit `model`."""
        modules = dict(model.named_modules())
        for name, pair in self.pairs.items():
            # A layer with an adapter has its weight one level deeper.
            layer = getattr(modules.get(name), "base_layer", modules.get(name))
            check_layer(name, pair.shape, layer.weight.shape if isinstance(layer, nn.Linear) else None)
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
            module = model.get_submodule(layer)
            bias = getattr(module, "bias", None)
            dtype = getattr(module, "base_layer", module).weight.dtype if bias is None else bias.dtype
            adapter[f"{layer}.lora_A.weight"] = pair.down.to(dtype)
            adapter[f"{layer}.lora_B.weight"] = pair.up().to(dtype)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # PEFT asks of every layer whether torchao has quantised it.
        with without_torchao():
            model.load_lora_adapter(adapter, prefix=None, adapter_name=name)
        # PEFT freezes the network; torch picks other kernels for frozen weights, whose results differ in the last bits.
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.set_adapters([name], [multiplier])

    def merge(self, model: nn.Module, multiplier: float = 1.0) -> None:
        """Add the LoRA to the weights that it changes, in float32; those in 8 bits become dense.

        Quantising them again would lose most of a small change. Raises SourceError unless it fits.
        """
        self.check(model)
        for layer, pair in self.pairs.items():
            module = model.get_submodule(layer)
            weight: Any = module.weight
            quantised = hasattr(weight, "qdata")
            dense = weight.dequantize(torch.float32) if quantised else weight.data.float()
            changed = (dense + multiplier * pair.delta().to(dense.device)).to(weight.dtype)
            module._parameters["weight"] = nn.Parameter(changed, requires_grad=not quantised and weight.requires_grad)


class AvatarLoras(Loras):
    """The LoRAs of a model, all in the published format."""

    def merge(self, transformer: nn.Module) -> None:
        """See `engine.loading.model.Loras`."""
        for path, scale in self.loras if self.mode == "merged" else ():
            read_lora(path).merge(transformer, scale)

    def attach_adapters(self, transformer: nn.Module) -> None:
        """See `engine.loading.model.Loras`."""
        self.attached = {}
        for index, path in enumerate(dict(self.loras) if self.mode == "runtime" else ()):
            lora = read_lora(path)
            lora.attach(transformer, f"lora{index}")
            self.attached[path] = AttachedLora(transformer, f"lora{index}")
        self.switch()


@dataclass(frozen=True)
class AttachedLora:
    """A LoRA beside the layers of a network, which can be switched."""

    model: Any
    name: str

    def enable(self, scale: float = 1.0) -> None:
        """Switch it on for the next forwards, in addition to others that are on."""
        active: dict[str, float] = self.model.__dict__.setdefault("_active_loras", {})
        active[self.name] = scale
        self._apply(active)

    def disable(self) -> None:
        """Switch it off; if no other is on, outputs are those without LoRAs, bit for bit."""
        active: dict[str, float] = self.model.__dict__.setdefault("_active_loras", {})
        active.pop(self.name, None)
        self._apply(active)

    def _apply(self, active: Mapping[str, float]) -> None:
        if active:
            self.model.enable_adapters()
            self.model.set_adapters(list(active), list(active.values()))
        else:
            self.model.disable_adapters()


def read_lora(path: Path) -> FusedLora:
    """Read a LoRA file. Raises SourceError if it is damaged, in another format, or incomplete."""
    from safetensors.torch import load_file

    stored_tensors(path)
    return sort_lora(load_file(path), path.name)


def sort_lora(tensors: Mapping[str, Tensor], file: str = "the LoRA") -> FusedLora:
    """Return the LoRA of tensors by their names in the file. Raises SourceError."""
    layers = sort_shapes({key: tuple(tensor.shape) for key, tensor in tensors.items()}, file)
    named: dict[str, dict[str, Tensor]] = {layer: {} for layer in layers}
    for key, tensor in tensors.items():
        layer, part = split_key(key)
        named[layer][part] = tensor
    return FusedLora({layer: _pair(parts) for layer, parts in named.items()})


def _pair(parts: Mapping[str, Tensor]) -> Pair:
    scale = float(parts[ALPHA]) if ALPHA in parts else 1.0
    return Pair(parts[DOWN], tuple(parts[up] for up in ups_of(parts)), scale)
