"""Where a network's tensors stand, so that each can be put elsewhere and taken back; and what a tensor is made of.

A tensor is exchanged for another in the dictionaries of its modules: `Tensor.data` cannot be, where a tensor is made of
others (torchao) or is only pretended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from engine.multitalk.compat import gguf_parts

#: One of torchao's, for instance: made of other tensors.
_is_composed: Callable[[Any], bool] = is_traceable_wrapper_subclass

#: A module's attribute: networks beside it that are not its submodules and go where it goes (`engine.loading.lora`).
BESIDE = "_multitalk_beside"


@dataclass
class Weight:
    """One parameter or buffer, and all places in which it stands: more than one where weights are tied."""

    tensor: Tensor
    places: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    def put(self, tensor: Tensor) -> None:
        """Let `tensor` stand in all of its places."""
        for box, key in self.places:
            box[key] = tensor

    def stands(self, tensor: Tensor) -> bool:
        """Say whether `tensor` stands in all of its places."""
        return all(box.get(key) is tensor for box, key in self.places)


def weights_of(module: nn.Module, *, apart: Collection[nn.Module] = ()) -> list[Weight]:
    """Return all parameters and buffers of `module`, and of what is beside its parts, but for those below `apart`."""
    left = {id(below) for one in apart for below in one.modules()}
    found: dict[int, Weight] = {}
    for one in _modules(module):
        if id(one) in left:
            continue
        for box in (one._parameters, one._buffers):
            for key, tensor in box.items():
                if tensor is not None:
                    found.setdefault(id(tensor), Weight(tensor)).places.append((box, key))
    return list(found.values())


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    for one in module.modules():
        yield one
        for beside in one.__dict__.get(BESIDE, ()):
            yield from _modules(beside)


def parts_of(tensor: Any) -> list[Tensor]:
    """Return the plain tensors that `tensor` is made of: itself, or what a torchao or GGUF tensor holds."""
    if _is_composed(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [getattr(tensor, name) for name in names]
    if hasattr(tensor, "quant_type"):
        return [tensor.as_tensor()]
    return [tensor.detach()]


def of_parts(like: Any, parts: Sequence[Tensor]) -> Tensor:
    """Return a tensor as `like`, a parameter if it is one, made of other `parts`, which are not copied."""
    if hasattr(like, "quant_type"):
        packed: Tensor = gguf_parts().parameter(parts[0], quant_type=like.quant_type)
        return packed
    made = parts[0]
    if _is_composed(like):
        names, told = like.__tensor_flatten__()
        made = type(like).__tensor_unflatten__(dict(zip(names, parts, strict=True)), told, like.size(), like.stride())
    return nn.Parameter(made, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else made


def kind_of(tensor: Any) -> str:
    """Return what two tensors have in common whose values alone differ, in words."""
    told = tensor.__tensor_flatten__()[1] if _is_composed(tensor) else vars(tensor).get("quant_type")
    parts = [(part.dtype, tuple(part.shape)) for part in parts_of(tensor)]
    return f"{type(tensor).__qualname__} {isinstance(tensor, nn.Parameter)} {parts} {told}"


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor."""
    return sum(part.numel() * part.element_size() for part in parts_of(tensor))
