"""Layer norms in float32, and the tables that modulate them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from engine.network import fused

#: Attribute of a module: functions that change its modulation table when it is read (`engine.loading.lora`).
TABLE_CHANGES = "_multitalk_table_changes"


class ModulatedLayerNorm(nn.Module):
    """LayerNorm without parameters, then scale and shift by the time embedding, all in float32."""

    #: Whether our own kernel computes it.
    fused = False

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, hidden_states: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
        """Normalise (1, L, D) and return it in `dtype`; `shift` and `scale` are float32 (D,)."""
        # One sample has one time, so the modulation is the affine part of a LayerNorm: a single fused kernel.
        return fused.layer_norm(hidden_states, 1 + scale, shift, self.eps, dtype, fused=self.fused)


class LayerNorm(nn.LayerNorm):
    """LayerNorm with parameters, in float32. Linear in them, so that a LoRA can add the result of their change."""

    #: Whether our own kernel computes it.
    fused = False

    def forward(self, input: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:  # noqa: A002 - its name in torch
        """Normalise (1, L, D) and return it in `dtype`."""
        weight, bias = self.weight.float(), self.bias.float()
        return fused.layer_norm(input, weight, bias, self.eps, dtype, fused=self.fused)


def modulation_table(module: nn.Module) -> Tensor:
    """Return the modulation table of a block (6, dim) or of the head (2, dim), float32, including changes by LoRAs."""
    parameter: Any = module.scale_shift_table
    table: Tensor = parameter[0].float()
    for change in module.__dict__.get(TABLE_CHANGES, ()):
        table = change(table)
    return table
