"""What the product does tensor by tensor, done at once: a component read, a LoRA merged into a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.loading.checkpoint import build_empty, fill
from engine.loading.layout import ComponentLayout
from engine.loading.lora import Coverage, LoraMerger
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def read_part(component: str, part: ComponentLayout, dtype: torch.dtype) -> Any:
    """Return the network of a component, in any format of `part`."""
    model = build_empty(component, part, MultiTalkTransformer3DModel)
    fill(model, component, part, dtype)
    return model.eval()


def merge_lora(
    state: dict[str, Tensor], lora: Mapping[str, Tensor], *, scale: float = 1.0, use_alpha: bool = True
) -> Coverage:
    """Merge `lora` into a state dict in place (our names or the reference's). Raises SourceError if nothing matches."""
    merger = LoraMerger(lora, scale=scale, use_alpha=use_alpha)
    for name in list(state):
        state[name] = merger.merge(name, state[name])
    return merger.coverage()
