"""The fastest exact kernel that is installed: flash-attn on CUDA, else PyTorch's own."""

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

    SageAttention is faster but is never selected automatically: it computes in 8 bits, which changes the video.
    """

    name: str = "auto"


class Auto:
    """Selects by device and by installed packages."""

    def __init__(self, config: AutoConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "flash" on CUDA if flash-attn is installed, else "native"."""
        return "flash" if device == "cuda" and find_spec("flash_attn") is not None else "native"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Auto, AutoConfig)
