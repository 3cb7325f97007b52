"""FlashAttention 2, on CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import MissingExtra
from engine.machine.packaged_backend import PackagedBackend
from engine.plugin.register import Register


@dataclass
class FlashConfig(ComponentConfig):
    """flash_attn.flash_attn_func (arXiv 2307.08691); exact, bfloat16 or float16."""

    name: str = "flash"


class Flash(PackagedBackend):
    """The kernel that diffusers calls "flash"."""

    name, package, modules = "flash", "flash-attn", ("flash_attn", "flash_attn_2_cuda")

    def missing(self) -> MissingExtra:
        """Return the error that names the extra to install."""
        return MissingExtra("attention=flash", "flash-attn", "flash")


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Flash, FlashConfig)
