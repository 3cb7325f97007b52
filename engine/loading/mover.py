"""A network that goes to the device and leaves it again; its weights stay in the host's memory meanwhile."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from engine.loading.slots import Weight, of_parts, parts_of, weights_of


class Mover:
    """Copies a network's weights to the device, and later drops the copies: what is unchanged is not copied back."""

    def __init__(self, module: nn.Module, device: str, *, apart: Collection[nn.Module] = ()) -> None:
        """Move nothing yet; what is below `apart` is somebody else's."""
        self.module, self.device, self.apart = module, device, apart
        self._there: list[tuple[Weight, Tensor, int]] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def come(self) -> None:
        """Bring all weights to the device. Where one fails, `go` takes back what came."""
        for weight in weights_of(self.module, apart=self.apart):
            copy = moved(weight.tensor, self.device)
            weight.put(copy)
            self._there.append((weight, copy, _version(copy)))

    @torch.inference_mode(False)
    @torch.no_grad()
    def go(self) -> None:
        """Let the host's weights stand in their places again, with what was changed on the device."""
        while self._there:
            weight, copy, version = self._there.pop()
            if not weight.stands(copy):
                continue
            # Statistics of batches are written by kernels that do not count it; our networks have none.
            statistics = copy.is_floating_point() and not isinstance(copy, nn.Parameter)
            if statistics or _version(copy) != version:
                for part, changed in zip(parts_of(weight.tensor), parts_of(copy), strict=True):
                    part.copy_(changed)
            weight.put(weight.tensor)
        # What was put in place of ours, or beside it, in the meantime.
        for weight in weights_of(self.module, apart=self.apart):
            if weight.tensor.device.type != "cpu":
                weight.put(moved(weight.tensor, "cpu"))
        forget = getattr(self.module, "forget_tables", None)
        if forget is not None:
            forget()


def moved(tensor: Tensor, device: str) -> Tensor:
    """Return a copy of a parameter or buffer on `device`, or itself where it is there."""
    if tensor.device == torch.device(device):
        return tensor
    # To the host it must be complete when it is looked at; from there, the device does the rest in order.
    parts = [part.to(device, non_blocking=device != "cpu") for part in parts_of(tensor)]
    return of_parts(tensor, parts)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written to."""
    return sum(part._version for part in parts_of(tensor))
