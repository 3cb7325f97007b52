"""Muon with AdamW beside it: an optimiser for trainings of few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices and kernels, AdamW for all other parameters.

    Matrices are the weights of a module's linear layers and convolutions; a kernel (out, in, ...) counts as
    (out, in * ...). Its momentum is replaced by the nearest
    semi-orthogonal matrix, found by five Newton-Schulz steps (Keller Jordan, "Muon: an optimizer for hidden layers",
    2024), and scaled so that the mean square of a step is that of AdamW's (Moonlight, arXiv 2502.16982, 2.2): both
    kinds share one learning rate. torch.optim.Muon takes matrices only and computes in bfloat16, which is slow on many
    CPUs.
    """

    def __init__(self, module: nn.Module, lr: float, *, betas: tuple[float, float], weight_decay: float) -> None:
        layers = (part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d))
        matrices = list({id(layer.weight): layer.weight for layer in layers}.values())
        chosen = {id(weight) for weight in matrices}
        others = [parameter for parameter in module.parameters() if id(parameter) not in chosen]
        shared = {"lr": lr, "weight_decay": weight_decay}
        groups: list[dict[str, Any]] = [{"params": matrices, "matrix": True} | shared]
        groups.append({"params": others, "matrix": False, "betas": betas} | shared)
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step. `closure` is not supported."""
        if closure is not None:
            raise ValueError("this optimiser takes no closure")
        for group in self.param_groups:
            update = _orthogonal_step if group["matrix"] else _adam_step
            for parameter in group["params"]:
                if parameter.grad is not None:
                    change = update(parameter.grad, self.state[parameter], group)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"])


def _orthogonal_step(gradient: Tensor, state: dict[str, Any], _group: dict[str, Any], momentum: float = 0.95) -> Tensor:
    mean = state.setdefault("mean", torch.zeros_like(gradient))
    mean.lerp_(gradient, 1 - momentum)
    flat = gradient.lerp(mean, momentum).flatten(1)
    return (orthogonalise(flat) * (0.2 * max(flat.shape) ** 0.5)).view_as(gradient)


def _adam_step(gradient: Tensor, state: dict[str, Any], group: dict[str, Any], eps: float = 1e-8) -> Tensor:
    first, second = group["betas"]
    mean = state.setdefault("mean", torch.zeros_like(gradient)).lerp_(gradient, 1 - first)
    square = state.setdefault("square", torch.zeros_like(gradient)).lerp_(gradient.square(), 1 - second)
    count = state["count"] = state.get("count", 0) + 1
    return mean / (1 - first**count) / ((square / (1 - second**count)).sqrt() + eps)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest semi-orthogonal matrix: singular values come out between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    # Each step multiplies x from the left by a polynomial of its Gram matrix: only that small matrix need be iterated.
    first = x @ x.T
    left = identity = torch.eye(len(x))
    for _ in range(steps):
        gram = left @ first @ left.T
        left = (a * identity + b * gram + c * gram @ gram) @ left
    x = left @ x
    return x.T if tall else x
