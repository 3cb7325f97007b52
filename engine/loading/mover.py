"""Move a whole network to the device and back; its weights stay in host memory in the meantime."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from engine.loading.slots import Weight, of_parts, parts_of, weights_of


class Mover:
    """Copies a network's weights to the device and later drops the copies; unchanged weights are not copied back."""

    def __init__(self, module: nn.Module, device: str, *, excluding: Collection[nn.Module] = ()) -> None:
        """Move nothing yet; modules below `excluding` are never moved."""
        self.module, self.device, self.excluding = module, device, excluding
        self._copies: list[tuple[Weight, Tensor, int]] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def onload(self) -> None:
        """Copy all weights to the device. If this fails half-way, `offload` undoes what was done."""
        for weight in weights_of(self.module, excluding=self.excluding):
            copy = moved(weight.tensor, self.device)
            weight.put(copy)
            self._copies.append((weight, copy, _version(copy)))

    @torch.inference_mode(False)
    @torch.no_grad()
    def offload(self) -> None:
        """Put the host's weights back, including changes that were made on the device."""
        while self._copies:
            weight, copy, version = self._copies.pop()
            if not weight.holds(copy):
                continue
            # Kernels change batch statistics without increasing the version counter; our networks have none.
            statistics = copy.is_floating_point() and not isinstance(copy, nn.Parameter)
            if statistics or _version(copy) != version:
                for part, changed in zip(parts_of(weight.tensor), parts_of(copy), strict=True):
                    part.copy_(changed)
            weight.put(weight.tensor)
        # Weights that were replaced or added in the meantime.
        for weight in weights_of(self.module, excluding=self.excluding):
            if weight.tensor.device.type != "cpu":
                weight.put(moved(weight.tensor, "cpu"))
        forget = getattr(self.module, "forget_tables", None)
        if forget is not None:
            forget()


def moved(tensor: Tensor, device: str) -> Tensor:
    """Return a copy of a parameter or buffer on `device`, or the tensor itself if it is there already."""
    if tensor.device == torch.device(device):
        return tensor
    # A copy to the host must be complete before it is used; copies to the device are ordered by its stream.
    parts = [part.to(device, non_blocking=device != "cpu") for part in parts_of(tensor)]
    return of_parts(tensor, parts)


def _version(tensor: Tensor) -> int:
    """Return torch's counter of in-place changes."""
    return sum(part._version for part in parts_of(tensor))
