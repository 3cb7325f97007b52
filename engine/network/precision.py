"""Which parameters of a network stay float32 in any model dtype."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def kept_in_float32(network: Any, name: str) -> bool:
    """Return whether the parameter `name` of a network, or of its class, stays float32.

    As in diffusers: a part of its name is in the class' `_keep_in_fp32_modules`.
    """
    kept = getattr(network, "_keep_in_fp32_modules", None) or ()
    return not set(name.split(".")).isdisjoint(kept)


def cast_model(model: M, dtype: torch.dtype) -> M:
    """Cast a loaded model in place to `dtype` except its float32 parts, as from_pretrained(torch_dtype=) does.

    A plain `.to(dtype)` casts everything; the model then also works, but less exactly.
    """
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if kept_in_float32(model, name) else dtype)
    return model
