"""xformers' memory-efficient attention, on CUDA."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import ConfigError, EngineError, MissingExtra
from engine.machine.packaged_backend import PackagedBackend
from engine.plugin.register import Register

#: Newest wheel on PyPI and its CUDA version, according to its cpp_lib.json and the libraries that its _C.so needs.
_PUBLISHED, _CUDA = "0.0.35", "12"


@dataclass
class XformersConfig(ComponentConfig):
    """xformers.ops.memory_efficient_attention, package xformers; exact."""

    name: str = "xformers"


class Xformers(PackagedBackend):
    """The kernel that diffusers calls "xformers"."""

    name, package, modules = "xformers", "xformers", ("xformers",)

    def missing(self) -> EngineError:
        """Return the error, which names the extra if its build fits the installed CUDA."""
        import torch

        if torch.version.cuda is None or torch.version.cuda.partition(".")[0] == _CUDA:
            return MissingExtra("attention=xformers", "xformers", "xformers")
        # The build that the extra installs could not be loaded.
        return ConfigError(
            f"attention=xformers needs the package 'xformers', which is not installed: PyPI's builds, up to "
            f"{_PUBLISHED}, are for CUDA {_CUDA}, and the installed torch has CUDA {torch.version.cuda}",
            field="attention",
            hint="choose attention=sdpa",
        )


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Xformers, XformersConfig)
