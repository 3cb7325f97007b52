"""A training's processes: clips of a step are shared among them, gradients are averaged."""

from __future__ import annotations

import os

import torch
from torch import distributed, nn


def place() -> tuple[int, int]:
    """Return this process' rank and how many there are: (0, 1) alone."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def join_group() -> None:
    """Join the processes that torchrun started, where it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo")


def share_gradients(network: nn.Module, over: bool, world: int) -> bool:
    """Average the gradients of all processes in place; say whether the time is over for one of them."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    joined = torch.cat([torch.tensor([float(over)]), *(g.flatten() for g in gradients)])
    distributed.all_reduce(joined)
    for gradient, mean in zip(gradients, torch.split(joined[1:], [g.numel() for g in gradients]), strict=True):
        gradient.copy_((mean / world).view_as(gradient))
    return bool(joined[0] > 0)
