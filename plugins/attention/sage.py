"""SageAttention, on CUDA: 8-bit products; the fastest kernel, not exact."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import MissingExtra
from engine.machine.packaged_backend import PackagedBackend
from engine.plugin.register import Register


@dataclass
class SageConfig(ComponentConfig):
    """sageattention.sageattn (arXiv 2410.02367); the video differs slightly from the other backends'."""

    name: str = "sage"


class Sage(PackagedBackend):
    """The kernel that diffusers calls "sage"."""

    name, package, modules = "sage", "sageattention", ("sageattention",)

    def missing(self) -> MissingExtra:
        """Return the error that names the extra to install."""
        return MissingExtra("attention=sage", "sageattention", "sage")


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Sage, SageConfig)
