"""The best exact kernel that is installed: flash-attn on CUDA where it is there, PyTorch's own otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.plugin.register import Register


@dataclass
class AutoConfig(ComponentConfig):
    """flash-attn on CUDA if installed, else PyTorch's scaled_dot_product_attention.

    SageAttention is faster and never chosen unasked: it computes in 8 bits, so the video changes.
    """

    name: str = "auto"


class Auto:
    """Picks by device and by what can be imported."""

    def __init__(self, config: AutoConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "flash" on CUDA where flash-attn is installed, else "native"."""
        return "flash" if device == "cuda" and find_spec("flash_attn") is not None else "native"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Auto, AutoConfig)
