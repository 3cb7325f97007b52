"""FlashAttention 2, on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import ConfigError, MissingExtra
from engine.machine.libraries import require_fitting
from engine.plugin.register import Register


@dataclass
class FlashConfig(ComponentConfig):
    """flash_attn.flash_attn_func (arXiv 2307.08691); exact, bfloat16 or float16."""

    name: str = "flash"


class Flash:
    """The kernel diffusers calls "flash"."""

    def __init__(self, config: FlashConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "flash". Raises ConfigError off CUDA or for a misfit, MissingExtra without flash-attn."""
        if device != "cuda":
            raise ConfigError(
                f"attention=flash runs on CUDA, not on {device!r}", field="attention", hint="choose attention=sdpa"
            )
        if find_spec("flash_attn") is None:
            raise MissingExtra("attention=flash", "flash-attn", "flash")
        require_fitting("attention=flash", "flash-attn", ("flash_attn", "flash_attn_2_cuda"))
        return "flash"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Flash, FlashConfig)
