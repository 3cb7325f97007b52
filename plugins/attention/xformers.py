"""xformers' memory-efficient attention, on CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import ConfigError, EngineError, MissingExtra
from engine.machine.packaged_backend import PackagedBackend
from engine.plugin.register import Register

#: Of the wheels on PyPI, up to 0.0.35: what their cpp_lib.json and the libraries that _C.so needs say.
_PUBLISHED, _CUDA = "0.0.35", "12"


@dataclass
class XformersConfig(ComponentConfig):
    """xformers.ops.memory_efficient_attention; exact."""

    name: str = "xformers"


class Xformers(PackagedBackend):
    """The kernel diffusers calls "xformers"."""

    name, package, modules = "xformers", "xformers", ("xformers",)

    def missing(self) -> EngineError:
        """Name the extra that installs it, where that would help."""
        import torch

        if torch.version.cuda is None or torch.version.cuda.partition(".")[0] == _CUDA:
            return MissingExtra("attention=xformers", "xformers", "xformers")
        # What the extra would install could not be loaded either.
        return ConfigError(
            f"attention=xformers needs the package 'xformers', which is not installed: PyPI's builds, up to "
            f"{_PUBLISHED}, are for CUDA {_CUDA}, and torch here brings CUDA {torch.version.cuda}",
            field="attention",
            hint="choose attention=sdpa",
        )


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Xformers, XformersConfig)
