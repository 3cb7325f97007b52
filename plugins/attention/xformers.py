"""xformers' memory-efficient attention, on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import ConfigError, MissingExtra
from engine.register import Register


@dataclass
class XformersConfig(ComponentConfig):
    """xformers.ops.memory_efficient_attention; exact."""

    name: str = "xformers"


class Xformers:
    """The kernel diffusers calls "xformers"."""

    def __init__(self, config: XformersConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "xformers". Raises ConfigError off CUDA and MissingExtra without the package xformers."""
        if device != "cuda":
            raise ConfigError(
                f"attention=xformers runs on CUDA, not on {device!r}", field="attention", hint="choose attention=sdpa"
            )
        if find_spec("xformers") is None:
            raise MissingExtra("attention=xformers", "xformers", "xformers")
        return "xformers"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Xformers, XformersConfig)
