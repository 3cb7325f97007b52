"""LoRA files on our network: merged into the weights, or as a side branch that can be switched per forward."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import SourceError
from engine.multitalk.keys import engine_name
from engine.multitalk.lora_names import merged_only, no_fit, no_match, sort_entries
from engine.multitalk.quantize import shape_of
from engine.multitalk.slots import BESIDE


@dataclass(frozen=True)
class Coverage:
    """What became of a LoRA file: our tensors it changed, and its own entries that found no tensor."""

    matched: tuple[str, ...]
    unmatched: tuple[str, ...]


@dataclass(frozen=True)
class Delta:
    """The change of one tensor: `up` @ `down`, or `full`, or both; unscaled but for alpha / rank."""

    sources: tuple[str, ...]
    down: Tensor | None = None
    up: Tensor | None = None
    full: Tensor | None = None

    def dense(self, shape: torch.Size, device: torch.device) -> Tensor:
        """Return the change as float32 tensor of `shape`. Raises SourceError if it has another shape."""
        total = torch.zeros(shape, device=device)
        try:
            if self.down is not None and self.up is not None:
                # A convolution's pair is a matrix product over its flattened kernel.
                down, up = (part.to(device).float().flatten(1) for part in (self.down, self.up))
                total = total + (up @ down).reshape(shape)
            if self.full is not None:
                total = total + self.full.to(device).float().reshape(shape)
        except RuntimeError as error:
            raise no_fit(self.sources[0], tuple(shape)) from error
        return total


def read_deltas(lora: Mapping[str, Tensor], *, use_alpha: bool = True) -> tuple[dict[str, Delta], tuple[str, ...]]:
    """Sort a LoRA state dict by our tensor names; also return its entries that name no tensor of the network.

    Understood are reference and our own module names behind `diffusion_model.`, `transformer.`, `unet.` or nothing, or
    with underscores behind `lora_unet_`; pairs lora_down/lora_up and lora_A/lora_B, `.diff` (weight) and `.diff_b`
    (bias). With `use_alpha` a pair with `.alpha` is scaled by alpha / rank, as trainers mean it, and one without by 1;
    else alpha is ignored, as the public implementation does. Raises SourceError for half a pair, and for kinds of
    adapter that are no LoRA (DoRA, LoHa, LoKr).
    """
    parts, unmatched = sort_entries(lora)
    deltas = {}
    for tensor, keys in parts.items():
        down, up = (lora[keys[half]] if half in keys else None for half in ("down", "up"))
        if use_alpha and "alpha" in keys and down is not None and up is not None:
            up = up.float() * (float(lora[keys["alpha"]]) / down.shape[0])
        full = keys.get("diff") or keys.get("diff_b")
        deltas[tensor] = Delta(tuple(keys.values()), down, up, None if full is None else lora[full])
    return deltas, unmatched


class LoraMerger:
    """Merges a LoRA into tensors as they stream by, before they are cast or quantised.

    Call `merge` for every tensor and `coverage` at the end. Arguments as `read_deltas`; `scale` multiplies all.
    """

    def __init__(self, lora: Mapping[str, Tensor], *, scale: float = 1.0, use_alpha: bool = True) -> None:
        self._deltas, self._unmatched = read_deltas(lora, use_alpha=use_alpha)
        self._scale = scale
        self._matched: list[str] = []

    def __contains__(self, name: str) -> bool:
        """Return whether the LoRA changes a tensor, named by either side."""
        return (engine_name(name) or name) in self._deltas

    def merge(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor`, whose name is ours or the reference's, plus its change; summed in float32, dtype kept."""
        delta = self._deltas.get(engine_name(name) or name)
        if delta is None:
            return tensor
        self._matched.append(name)
        return (tensor.float() + self._scale * delta.dense(tensor.shape, tensor.device)).to(tensor.dtype)

    def coverage(self) -> Coverage:
        """Return what was matched so far. Raises SourceError if nothing was."""
        return _coverage(self._deltas, self._unmatched, self._matched)


def merge_lora(
    state: dict[str, Tensor], lora: Mapping[str, Tensor], *, scale: float = 1.0, use_alpha: bool = True
) -> Coverage:
    """Merge `lora` into a state dict in place (our names or the reference's). Raises SourceError if nothing matches."""
    merger = LoraMerger(lora, scale=scale, use_alpha=use_alpha)
    for name in list(state):
        state[name] = merger.merge(name, state[name])
    return merger.coverage()


@dataclass
class RuntimeLora:
    """A LoRA beside the weights of a model, which are never touched; off until enabled.

    Pairs are a PEFT adapter. `.diff` and `.diff_b` are a second module of the same kind whose parameters are the
    change: linear layers, convolutions and norms are linear in their parameters, so the outputs add up.
    """

    name: str
    coverage: Coverage
    _model: Any
    _active: dict[str, float] = field(repr=False)

    @property
    def enabled(self) -> bool:
        return self.name in self._active

    def enable(self, scale: float = 1.0) -> None:
        """Switch on for the forwards to come, beside other enabled LoRAs."""
        self._active[self.name] = scale
        self._apply()

    def disable(self) -> None:
        """Switch off; without other LoRAs outputs equal the bare model's bit for bit."""
        self._active.pop(self.name, None)
        self._apply()

    @contextmanager
    def use(self, scale: float = 1.0) -> Iterator[None]:
        """Switch on inside a `with` only."""
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


def load_runtime_lora(model: Any, state: Mapping[str, Tensor], name: str, *, use_alpha: bool = True) -> RuntimeLora:
    """Put a LoRA beside the weights of a MultiTalkTransformer3DModel under `name`, switched off.

    Raises SourceError if nothing matches, a change does not fit, the name is taken, or the file changes a tensor that
    is no layer's weight or bias (the modulation tables), which only merging can do.
    """
    active: dict[str, float] = model.__dict__.setdefault("_runtime_loras", {})
    known: set[str] = model.__dict__.setdefault("_runtime_lora_names", set())
    if name in known:
        raise SourceError(f"a LoRA named {name!r} is loaded already", field="lora.name")
    deltas, unmatched = read_deltas(state, use_alpha=use_alpha)
    parameters = dict(model.named_parameters())
    # A layer that carries an adapter of another LoRA holds its own parameters one level deeper.
    shapes = {tensor.replace(".base_layer.", "."): parameter for tensor, parameter in parameters.items()}
    matched = [tensor for tensor in deltas if tensor in shapes]
    coverage = _coverage(deltas, unmatched, matched)

    adapter: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    for tensor in matched:
        delta, parameter = deltas[tensor], shapes[tensor]
        module, _, leaf = tensor.rpartition(".")
        shape, dtype = torch.Size(shape_of(parameter)), _dtype(model, tensor)
        delta.dense(shape, torch.device("cpu"))
        if leaf not in ("weight", "bias"):
            raise merged_only(delta.sources[0])
        if delta.down is not None and delta.up is not None:
            adapter[f"{module}.lora_A.weight"] = delta.down.to(dtype)
            adapter[f"{module}.lora_B.weight"] = delta.up.to(dtype)
        if delta.full is not None:
            layers.setdefault(module, {})[leaf] = delta.full.reshape(shape).to(dtype)
    for module, changes in layers.items():
        _add_branch(_base_layer(model.get_submodule(module)), changes, active, name)
    if adapter:
        trainable = [parameter for parameter in parameters.values() if parameter.requires_grad]
        model.load_lora_adapter(adapter, prefix=None, adapter_name=name)
        # PEFT freezes the network, and torch picks other kernels, with other last bits, for frozen weights.
        for parameter in trainable:
            parameter.requires_grad_(True)
    known.add(name)
    lora = RuntimeLora(name, coverage, model, active)
    lora.disable()
    return lora


def _add_branch(layer: nn.Module, changes: dict[str, Tensor], active: dict[str, float], name: str) -> None:
    if "weight" in changes or not isinstance(layer, nn.Linear):
        branch = _like(layer, changes)
    else:
        # Most entries of a large file are biases: a second weight of zeros would be a second network.
        branch = _Constant(changes["bias"])

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        scale = active.get(name)
        if scale is None:
            return None
        change: Tensor = branch.to(inputs[0].device)(*inputs)
        return output + scale * change

    # Not a submodule, so that saving sees the bare network; but it goes where its layer goes.
    layer.__dict__.setdefault(BESIDE, []).append(branch)
    layer.register_forward_hook(add)


class _Constant(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value, requires_grad=False)

    def forward(self, _hidden_states: Tensor) -> Tensor:
        return self.value


def _like(layer: nn.Module, changes: dict[str, Tensor]) -> nn.Module:
    """Copy `layer` with `changes` for its parameters, and noughts where there are none."""
    fresh = {}
    for leaf, parameter in layer.named_parameters(recurse=False):
        # Not zeros_like: a quantised weight has none, and the change of one is dense.
        change = changes.get(leaf, torch.zeros(parameter.shape, dtype=parameter.dtype))
        fresh[id(parameter)] = nn.Parameter(change.to(parameter.device), requires_grad=False)
    branch = copy.deepcopy(layer, fresh)
    branch._forward_hooks.clear()
    branch._forward_pre_hooks.clear()
    branch.__dict__.pop(BESIDE, None)
    return branch


def _dtype(model: Any, tensor: str) -> torch.dtype:
    module, _, leaf = tensor.rpartition(".")
    layer = _base_layer(model.get_submodule(module)) if module else model
    # Of a weight that is packed into bytes the layer says what it computes in.
    dtype: torch.dtype = getattr(layer, "compute_dtype", None) or getattr(layer, leaf).dtype
    return dtype


def _base_layer(module: nn.Module) -> nn.Module:
    base = getattr(module, "base_layer", module)
    assert isinstance(base, nn.Module)
    return base


def _coverage(deltas: Mapping[str, Delta], unmatched: tuple[str, ...], matched: list[str]) -> Coverage:
    if not matched:
        example = next(iter(unmatched), None) or next((delta.sources[0] for delta in deltas.values()), "nothing")
        raise no_match(example)
    hit = {engine_name(name) or name for name in matched}
    left = tuple(key for tensor, delta in deltas.items() if tensor not in hit for key in delta.sources)
    return Coverage(tuple(matched), unmatched + left)
