"""SageAttention, on CUDA: 8-bit products, fastest, not exact."""

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
class SageConfig(ComponentConfig):
    """sageattention.sageattn (arXiv 2410.02367); the video differs slightly from the other backends'."""

    name: str = "sage"


class Sage:
    """The kernel diffusers calls "sage"."""

    def __init__(self, config: SageConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "sage". Raises ConfigError off CUDA or for a misfit, MissingExtra without sageattention."""
        if device != "cuda":
            raise ConfigError(
                f"attention=sage runs on CUDA, not on {device!r}", field="attention", hint="choose attention=sdpa"
            )
        if find_spec("sageattention") is None:
            raise MissingExtra("attention=sage", "sageattention", "sage")
        require_fitting("attention=sage", "sageattention", ("sageattention",))
        return "sage"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Sage, SageConfig)
