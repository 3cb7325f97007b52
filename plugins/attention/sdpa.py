"""PyTorch's own scaled dot-product attention: runs everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.plugin.register import Register


@dataclass
class SdpaConfig(ComponentConfig):
    """torch.nn.functional.scaled_dot_product_attention, which picks the fastest kernel PyTorch ships."""

    name: str = "sdpa"


class Sdpa:
    """The kernel that diffusers calls "native"."""

    def __init__(self, config: SdpaConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "native" for any device."""
        return "native"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Sdpa, SdpaConfig)
