"""xformers' memory-efficient attention, on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from engine import hookimpl
from engine.components import AttentionBackend
from engine.config import ComponentConfig
from engine.errors import ConfigError, MissingExtra
from engine.machine.libraries import require_fitting
from engine.plugin.register import Register

#: Of the wheels on PyPI, up to 0.0.35: what their cpp_lib.json and the libraries that _C.so needs say.
_PUBLISHED, _CUDA = "0.0.35", "12"


@dataclass
class XformersConfig(ComponentConfig):
    """xformers.ops.memory_efficient_attention; exact."""

    name: str = "xformers"


class Xformers:
    """The kernel diffusers calls "xformers"."""

    def __init__(self, config: XformersConfig) -> None:
        pass

    def resolve(self, device: str) -> str:
        """Return "xformers". Raises ConfigError off CUDA or for a misfit, MissingExtra without xformers."""
        if device != "cuda":
            raise ConfigError(
                f"attention=xformers runs on CUDA, not on {device!r}", field="attention", hint="choose attention=sdpa"
            )
        if find_spec("xformers") is None:
            import torch

            if torch.version.cuda is not None and torch.version.cuda.partition(".")[0] != _CUDA:
                # What the extra would install could not be loaded either.
                raise ConfigError(
                    f"attention=xformers needs the package 'xformers', which is not installed: PyPI's builds, up to "
                    f"{_PUBLISHED}, are for CUDA {_CUDA}, and torch here brings CUDA {torch.version.cuda}",
                    field="attention",
                    hint="choose attention=sdpa",
                )
            raise MissingExtra("attention=xformers", "xformers", "xformers")
        require_fitting("attention=xformers", "xformers", ("xformers",))
        return "xformers"


@hookimpl
def register_attention(register: Register[AttentionBackend]) -> None:
    register(Xformers, XformersConfig)
