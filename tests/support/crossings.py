"""What goes between the CPU and a device, seen on torch's meta device: no GPU is needed to count it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Crossings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operation inside a `with` that copies between the CPU and "meta", or reads a value of "meta"."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # A number that an operation on the device takes is given to its kernel, as a tensor of the CPU as well.
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        reads = func is torch.ops.aten._local_scalar_dense.default and given[0].is_meta
        if reads:
            self.seen.append(str(func))
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in (*given, *tree_leaves(result)) if isinstance(leaf, Tensor)}
        if copies and len(devices) > 1:
            self.seen.append(str(func))
        return result
