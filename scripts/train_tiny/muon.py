"""Muon combined with AdamW: an optimiser for trainings with few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from scripts.train_tiny.group import place


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and kernels, AdamW for all other parameters.

    Matrices are the weights of a module's linear layers and convolutions; a kernel (out, in, ...) counts as
    (out, in * ...). Its momentum is replaced by the nearest semi-orthogonal matrix, found by five Newton-Schulz steps
    (Keller Jordan, "Muon: an optimizer for hidden layers", 2024), and scaled so that the mean square of a step is that
    of AdamW's (Moonlight, arXiv 2502.16982, 2.2): both kinds share one learning rate. torch.optim.Muon takes matrices
    only and computes in bfloat16, which is slow on many CPUs.
    """

    def __init__(self, module: nn.Module, lr: float, *, betas: tuple[float, float], weight_decay: float) -> None:
        layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d))
        matrices = list({id(layer.weight): layer.weight for layer in layers}.values())
        ids = {id(weight) for weight in matrices}
        others = [parameter for parameter in module.parameters() if id(parameter) not in ids]
        shared = {"lr": lr, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [{"params": matrices, "matrix": True} | shared]
        groups.append({"params": others, "matrix": False, "betas": betas} | shared)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. `closure` is not supported."""
        if closure is not None:
            raise ValueError("this optimiser does not support a closure")
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            changes = self._orthogonal_steps(parameters) if group["matrix"] else self._adam_steps(parameters, group)
            for parameter, change in zip(parameters, changes, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"])

    def _orthogonal_steps(self, parameters: list[nn.Parameter], momentum: float = 0.95) -> list[Tensor]:
        rank, world = place()
        changes = []
        for number, parameter in enumerate(parameters):
            mean = (
                self.state[parameter]
                .setdefault("mean", torch.zeros_like(parameter))
                .lerp_(_of(parameter), 1 - momentum)
            )
            if number % world == rank:
                flat = _of(parameter).lerp(mean, momentum).flatten(1)
                changes.append((orthogonalise(flat) * (0.2 * max(flat.shape) ** 0.5)).view_as(parameter))
            else:
                changes.append(torch.zeros_like(parameter))
        if world == 1:
            return changes
        # The processes have the same gradients and share the work.
        joined = torch.cat([change.flatten() for change in changes])
        distributed.all_reduce(joined)
        pieces = torch.split(joined, [change.numel() for change in changes])
        return [piece.view_as(change) for piece, change in zip(pieces, changes, strict=True)]

    def _adam_steps(self, parameters: list[nn.Parameter], group: dict[str, Any], eps: float = 1e-8) -> list[Tensor]:
        first, second = group["betas"]
        changes = []
        for parameter in parameters:
            state, gradient = self.state[parameter], _of(parameter)
            mean = state.setdefault("mean", torch.zeros_like(parameter)).lerp_(gradient, 1 - first)
            square = state.setdefault("square", torch.zeros_like(parameter)).lerp_(gradient.square(), 1 - second)
            count = state["count"] = state.get("count", 0) + 1
            changes.append(mean / (1 - first**count) / ((square / (1 - second**count)).sqrt() + eps))
        return changes


def _of(parameter: nn.Parameter) -> Tensor:
    gradient: Tensor = parameter.grad  # type: ignore[assignment]
    return gradient


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest semi-orthogonal matrix: singular values come out between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    if x.shape[1] < 3 * len(x):
        for _ in range(steps):
            gram = x @ x.T
            x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
        return x.T if tall else x
    # Each step multiplies x from the left by a polynomial of its Gram matrix: only that small matrix is iterated.
    first = x @ x.T
    product = identity = torch.eye(len(x))
    for _ in range(steps):
        gram = product @ first @ product.T
        product = (a * identity + torch.addmm(gram, gram, gram, beta=b, alpha=c)) @ product
    x = product @ x
    return x.T if tall else x
