"""Where a network refers to its tensors, so that each can be exchanged and put back; and a tensor's inner tensors.

A tensor is exchanged in the dictionaries of its modules: `Tensor.data` cannot be assigned if a tensor consists of
others (torchao) or is a fake tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from engine.network.compat import gguf_parts

#: Whether a tensor consists of other tensors, as torchao's do.
_is_composed: Callable[[Any], bool] = is_traceable_wrapper_subclass

#: Attribute of a module: networks that are not its submodules but move together with it (`engine.loading.lora`).
BRANCHES = "_multitalk_beside"


@dataclass
class Weight:
    """One parameter or buffer, and all places that refer to it: more than one for tied weights."""

    tensor: Tensor
    places: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def put(self, tensor: Tensor) -> None:
        """Store `tensor` in all places."""
        for box, key in self.places:
            box[key] = tensor

    def holds(self, tensor: Tensor) -> bool:
        """Return whether all places refer to `tensor`."""
        return all(box.get(key) is tensor for box, key in self.places)


def weights_of(module: nn.Module, *, excluding: Collection[nn.Module] = ()) -> list[Weight]:
    """Return the parameters and buffers of `module` and its branches, except of the modules below `excluding`."""
    excluded = {id(below) for one in excluding for below in one.modules()}
    weights: dict[int, Weight] = {}
    for one in _modules(module):
        if id(one) in excluded:
            continue
        for box in (one._parameters, one._buffers):
            for key, tensor in box.items():
                if tensor is not None:
                    weights.setdefault(id(tensor), Weight(tensor)).places.append((box, key))
    return list(weights.values())


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    for one in module.modules():
        yield one
        for branch in one.__dict__.get(BRANCHES, ()):
            yield from _modules(branch)


def parts_of(tensor: Any) -> list[Tensor]:
    """Return the plain tensors that `tensor` consists of: itself, or the inner tensors of torchao or GGUF."""
    if _is_composed(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    if hasattr(tensor, "quant_type"):
        return [tensor.as_tensor()]
    return [tensor.detach()]


def of_parts(like: Any, parts: Sequence[Tensor]) -> Tensor:
    """Return a tensor of the same type as `like` that consists of `parts`, which are not copied."""
    if hasattr(like, "quant_type"):
        packed: Tensor = gguf_parts().parameter(parts[0], quant_type=like.quant_type)
        return packed
    tensor = parts[0]
    if _is_composed(like):
        names, context = like.__tensor_flatten__()
        tensor = type(like).__tensor_unflatten__(
            dict(zip(names, parts, strict=True)), context, like.size(), like.stride()
        )
    return nn.Parameter(tensor, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else tensor


def layout_of(tensor: Any) -> str:
    """Return a text that is equal for two tensors that differ only in their values."""
    context = tensor.__tensor_flatten__()[1] if _is_composed(tensor) else vars(tensor).get("quant_type")
    parts = [(part.dtype, tuple(part.shape)) for part in parts_of(tensor)]
    return f"{type(tensor).__qualname__} {isinstance(tensor, nn.Parameter)} {parts} {context}"


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor."""
    return sum(part.numel() * part.element_size() for part in parts_of(tensor))
