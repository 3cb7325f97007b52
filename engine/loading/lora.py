"""Apply LoRA files: merged into the weights, or as a side branch that can be switched per forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import SourceError
from engine.imports.deferred import without_torchao
from engine.loading.key_map import engine_name
from engine.loading.lora_alpha import StatedAlpha, strengths
from engine.loading.lora_names import check_share, fits, no_match_error, pair_of, shape_error, sort_entries
from engine.loading.quantize import shape_of
from engine.loading.slots import BRANCHES
from engine.network.norms import TABLE_CHANGES


@dataclass(frozen=True)
class Coverage:
    """What a LoRA file changed: our tensors, its entries that match no tensor, and the number of all entries."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]
    entries: int


@dataclass(frozen=True)
class Delta:
    """The change of one tensor: the sum of its entries.

    `parts` are named as by `sort_entries`. A product (a pair, LoHa, LoKr) is multiplied by `scale`, which comes from
    alpha; the change of a whole tensor ("diff") is not.
    """

    sources: tuple[str, ...]
    parts: Mapping[str, Tensor]
    scale: float = 1.0

    @property
    def is_pair(self) -> bool:
        """Whether `parts` has the halves of a LoRA."""
        return "down" in self.parts

    @property
    def is_product(self) -> bool:
        """Whether `parts` has the factors of LoHa or LoKr, whose product is dense."""
        return "hada_w1_a" in self.parts or any(part.startswith("lokr_") for part in self.parts)

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether the change fits a tensor of `shape`."""
        return fits({part: tuple(tensor.shape) for part, tensor in self.parts.items()}, shape)

    def dense(self, shape: torch.Size, device: torch.device | str) -> Tensor:
        """Return the change as a float32 tensor of `shape`. Raises SourceError if it does not fit."""
        if not self.fits(shape):
            raise shape_error(self.sources[0], tuple(shape))
        total = torch.zeros(shape, device=device)
        parts = {part: tensor.to(device).float() for part, tensor in self.parts.items()}
        if self.is_pair:
            # A convolution's pair is a matrix product over its flattened kernel.
            total = total + self.scale * (parts["up"].flatten(1) @ parts["down"].flatten(1)).reshape(shape)
        if self.is_product:
            total = total + self.scale * product(parts).reshape(shape)
        if "diff" in parts:
            total = total + parts["diff"].reshape(shape)
        if "up_bias" in parts:
            total = total + self.scale * parts["up_bias"].reshape(shape)
        return total


def product(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the product of the factors of LoHa or LoKr, a matrix (out, in).

    LoHa is the elementwise product of two matrix products. LoKr is the Kronecker product of two matrices, each stored
    whole or as a product. Source: LyCORIS (KohakuBlueleaf/LyCORIS), docs/Algo-Details.md.
    """

    def factor(name: str) -> Tensor:
        if name in parts:
            return parts[name].flatten(1)
        return parts[f"{name}_a"].flatten(1) @ parts[f"{name}_b"].flatten(1)

    if "hada_w1_a" in parts:
        return factor("hada_w1") * factor("hada_w2")
    return torch.kron(factor("lokr_w1"), factor("lokr_w2"))


def read_deltas(
    lora: Mapping[str, Tensor], *, use_alpha: bool = True, stated: Sequence[StatedAlpha] = ()
) -> tuple[dict[str, Delta], tuple[str, ...]]:
    """Sort a LoRA state dict by our tensor names; also return its entries that match no tensor of the network.

    Supported names: the reference's and our module names, with the prefix `diffusion_model.`, `transformer.`, `unet.`
    or none, or with some or all dots replaced by underscores after `lora_unet_` or `lycoris_`. Supported entries: pairs
    lora_down/lora_up and lora_A/lora_B with the bias of the second; LoHa and LoKr; changes of whole tensors: `.diff`
    and `.w_norm` (weight), `.diff_b` and `.b_norm` (bias), `.diff_m` (modulation table of a block or of the head).

    With `use_alpha` a pair is scaled by alpha / rank, as trainers do, if `.alpha` or `stated` (header,
    adapter_config.json) gives alpha, and by 1 otherwise. Without it alpha is ignored, as in the public implementation.
    Raises SourceError for an incomplete pair, for sources of alpha that differ, and for unsupported adapters (DoRA).
    """
    parts, unmatched = sort_entries(lora)
    scales: Mapping[str, float] = {}
    if use_alpha:
        shapes = {key: tuple(tensor.shape) for key, tensor in lora.items()}
        alphas = {key: float(tensor) for key, tensor in lora.items() if key.endswith(".alpha")}
        scales = strengths(parts, shapes, alphas, stated).scales
    deltas = {}
    for tensor, keys in parts.items():
        tensors = {part: lora[key] for part, key in keys.items() if part != "alpha"}
        deltas[tensor] = Delta(tuple(keys.values()), tensors, scales.get(pair_of(tensor), 1.0))
    return deltas, unmatched


class LoraMerger:
    """Merges a LoRA into tensors one by one, before they are cast or quantised.

    Call `merge` for every tensor and `coverage` at the end. Arguments as `read_deltas`; `scale` multiplies all.
    """

    def __init__(
        self,
        lora: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        use_alpha: bool = True,
        stated: Sequence[StatedAlpha] = (),
    ) -> None:
        self._deltas, self._unmatched = read_deltas(lora, use_alpha=use_alpha, stated=stated)
        self._scale = scale
        self._matched: list[str] = []

    def __contains__(self, name: str) -> bool:
        """Return whether the LoRA changes a tensor, given the reference's name or ours."""
        return (engine_name(name) or name) in self._deltas

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` plus its change, in the same dtype; the sum is computed in float32."""
        delta = self._deltas.get(engine_name(name) or name)
        if delta is None:
            return tensor
        self._matched.append(name)
        return (tensor.float() + self._scale * delta.dense(tensor.shape, tensor.device)).to(tensor.dtype)

    def coverage(self) -> Coverage:
        """Return what was matched so far. Raises SourceError if nothing was, or less than MOST_UNMATCHED allows."""
        return _coverage(self._deltas, self._unmatched, self._matched)


@dataclass
class RuntimeLora:
    """A LoRA attached to a model without changing its weights; off until enabled.

    Pairs become a PEFT adapter. Changes of whole tensors become a second module of the same type whose parameters are
    the change: linear layers, convolutions and norms are linear in their parameters, so the outputs add up. LoHa and
    LoKr become such a module that keeps its factors. A modulation table is added to its change where it is read.
    """

    name: str
    coverage: Coverage
    _model: Any
    _active: dict[str, float] = field(repr=False)

    def enable(self, scale: float = 1.0) -> None:
        """Switch on for the next forwards, in addition to other enabled LoRAs."""
        self._active[self.name] = scale
        self._apply()

    def disable(self) -> None:
        """Switch off; if no other LoRA is on, outputs equal those of the model without LoRAs, bit for bit."""
        self._active.pop(self.name, None)
        self._apply()

    @contextmanager
    def use(self, scale: float = 1.0) -> Iterator[None]:
        """Switch on inside a `with` block."""
        self.enable(scale)
        try:
            yield
        finally:
            self.disable()

    def _apply(self) -> None:
        if not getattr(self._model, "peft_config", None):
            return
        adapters = {name: scale for name, scale in self._active.items() if name in self._model.peft_config}
        if adapters:
            self._model.enable_adapters()
            self._model.set_adapters(list(adapters), list(adapters.values()))
        else:
            self._model.disable_adapters()


def load_runtime_lora(
    model: Any, state: Mapping[str, Tensor], name: str, *, use_alpha: bool = True, stated: Sequence[StatedAlpha] = ()
) -> RuntimeLora:
    """Attach a LoRA to a transformer under `name`, switched off.

    Arguments as `read_deltas`. Raises SourceError if nothing or too little matches, a change does not fit, or the name
    is taken.
    """
    active: dict[str, float] = model.__dict__.setdefault("_runtime_loras", {})
    loaded_names: set[str] = model.__dict__.setdefault("_runtime_lora_names", set())
    if name in loaded_names:
        raise SourceError(f"a LoRA named {name!r} is loaded already", field="lora.name")
    deltas, unmatched = read_deltas(state, use_alpha=use_alpha, stated=stated)
    parameters = dict(model.named_parameters())
    # In a layer with an adapter of another LoRA the layer's own parameters are one level deeper.
    shapes = {tensor.replace(".base_layer.", "."): parameter for tensor, parameter in parameters.items()}
    matched = [tensor for tensor in deltas if tensor in shapes]
    coverage = _coverage(deltas, unmatched, matched)

    adapter: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    tables: dict[str, Tensor] = {}
    products: dict[str, Delta] = {}
    for tensor in matched:
        delta, parameter = deltas[tensor], shapes[tensor]
        module, _, leaf = tensor.rpartition(".")
        shape, dtype = torch.Size(shape_of(parameter)), _dtype(model, tensor)
        if not delta.fits(shape):
            raise shape_error(delta.sources[0], tuple(shape))
        if leaf == "scale_shift_table":
            tables[module] = delta.dense(shape, "cpu")
            continue
        if delta.is_pair:
            adapter[f"{module}.lora_A.weight"] = delta.parts["down"].to(dtype)
            adapter[f"{module}.lora_B.weight"] = _scaled(delta.parts["up"], delta.scale).to(dtype)
        if delta.is_product:
            products[module] = delta
        change = [delta.parts["diff"]] if "diff" in delta.parts else []
        change += [_scaled(delta.parts["up_bias"], delta.scale)] if "up_bias" in delta.parts else []
        if change:
            total = sum((part.float() for part in change[1:]), change[0])
            layers.setdefault(module, {})[leaf] = total.reshape(shape).to(dtype)
    for module, table in tables.items():
        _add_table(model.get_submodule(module), table, active, name)
    for module, delta in products.items():
        layer = _base_layer(model.get_submodule(module))
        _add_branch(layer, _Product(layer, delta, _dtype(model, f"{module}.weight")), active, name)
    for module, changes in layers.items():
        layer = _base_layer(model.get_submodule(module))
        # Most entries of a large file are biases: a second weight of zeros would be a second network.
        constant = "weight" not in changes and isinstance(layer, nn.Linear)
        _add_branch(layer, _Constant(changes["bias"]) if constant else _like(layer, changes), active, name)
    if adapter:
        trainable = [parameter for parameter in parameters.values() if parameter.requires_grad]
        # PEFT asks of every layer whether torchao has quantised it. It has not where torchao is not imported.
        with without_torchao():
            model.load_lora_adapter(adapter, prefix=None, adapter_name=name)
        # PEFT freezes the network; torch picks other kernels for frozen weights, whose results differ in the last bits.
        for parameter in trainable:
            parameter.requires_grad_(True)
    loaded_names.add(name)
    lora = RuntimeLora(name, coverage, model, active)
    lora.disable()
    return lora


def _scaled(tensor: Tensor, scale: float) -> Tensor:
    return tensor if scale == 1 else tensor.float() * scale


def _add_branch(layer: nn.Module, branch: nn.Module, active: dict[str, float], name: str) -> None:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        scale = active.get(name)
        if scale is None:
            return None
        change: Tensor = branch.to(inputs[0].device)(*inputs)
        return output + scale * change

    # Not a submodule, so that saving does not see it; but it moves to devices together with its layer.
    layer.__dict__.setdefault(BRANCHES, []).append(branch)
    layer.register_forward_hook(add)


def _add_table(module: nn.Module, change: Tensor, active: dict[str, float], name: str) -> None:
    """Add `change` to a block's or the head's modulation table while the LoRA is on."""
    branch = _Constant(change)

    def add(table: Tensor) -> Tensor:
        scale = active.get(name)
        return table if scale is None else table + scale * branch.value[0].to(table.device)

    module.__dict__.setdefault(BRANCHES, []).append(branch)
    module.__dict__.setdefault(TABLE_CHANGES, []).append(add)


class _Product(nn.Module):
    """The change that LoHa or LoKr make to a layer's output; keeps the factors, not their product."""

    def __init__(self, layer: nn.Module, delta: Delta, dtype: torch.dtype) -> None:
        super().__init__()
        self._scale = delta.scale
        self._names = [part for part in delta.parts if part.startswith(("hada_", "lokr_"))]
        self.factors = nn.ParameterList(
            nn.Parameter(delta.parts[name].to(dtype), requires_grad=False) for name in self._names
        )
        # Kernel and stride of the patch convolution, the only one in the network.
        self._convolution: Any = None if isinstance(layer, nn.Linear) else (layer.weight.shape, layer.stride)

    def forward(self, hidden_states: Tensor) -> Tensor:
        factors = {name: factor.float() for name, factor in zip(self._names, self.factors, strict=True)}
        change = (self._scale * product(factors)).to(hidden_states.dtype)
        if self._convolution is None:
            return F.linear(hidden_states, change)
        kernel, stride = self._convolution
        return F.conv3d(hidden_states, change.reshape(kernel), stride=stride)


class _Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=False)

    def forward(self, _hidden_states: Tensor) -> Tensor:
        return self.value


def _like(layer: nn.Module, changes: dict[str, Tensor]) -> nn.Module:
    """Copy `layer` with `changes` as its parameters, and zeros for the others."""
    fresh = {}
    for leaf, parameter in layer.named_parameters(recurse=False):
        # Not zeros_like: it does not exist for quantised weights, and their change is dense.
        change = changes.get(leaf, torch.zeros(parameter.shape, dtype=parameter.dtype))
        fresh[id(parameter)] = nn.Parameter(change.to(parameter.device), requires_grad=False)
    branch = copy.deepcopy(layer, fresh)
    branch._forward_hooks.clear()
    branch._forward_pre_hooks.clear()
    branch.__dict__.pop(BRANCHES, None)
    return branch


def _dtype(model: Any, tensor: str) -> torch.dtype:
    module, _, leaf = tensor.rpartition(".")
    layer = _base_layer(model.get_submodule(module)) if module else model
    # For a weight that is packed into bytes, the layer has the dtype it computes in.
    dtype: torch.dtype = getattr(layer, "compute_dtype", None) or getattr(layer, leaf).dtype
    return dtype


def _base_layer(module: nn.Module) -> nn.Module:
    base = getattr(module, "base_layer", module)
    assert isinstance(base, nn.Module)
    return base


def _coverage(deltas: Mapping[str, Delta], unmatched: tuple[str, ...], matched: list[str]) -> Coverage:
    if not matched:
        example = next(iter(unmatched), None) or next((delta.sources[0] for delta in deltas.values()), "nothing")
        raise no_match_error(example)
    changed = {engine_name(name) or name for name in matched}
    unused = unmatched + tuple(
        key for tensor, delta in deltas.items() if tensor not in changed for key in delta.sources
    )
    total = len(unmatched) + sum(len(delta.sources) for delta in deltas.values())
    check_share(total, unused)
    return Coverage(tuple(matched), unused, total)
