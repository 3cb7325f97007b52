"""The engine's own reader: threads read the files ahead of their use."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import Reader
from engine.config import ComponentConfig
from engine.plugin.register import Register


@dataclass
class AheadConfig(ComponentConfig):
    """Threads read the files roughly in order, a little ahead; needs no further package."""

    name: str = "ahead"
    #: On the CPU, memory-map large tensors that keep their stored form; all processes share them.
    mapped: bool = True


def ahead(config: AheadConfig) -> Reader:
    """Return the reader."""
    from engine.loading.safetensors_reader import AheadReader

    return AheadReader(mapped=config.mapped)


@hookimpl
def register_readers(register: Register[Reader]) -> None:
    register(ahead, AheadConfig)
