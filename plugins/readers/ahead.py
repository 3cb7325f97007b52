"""The engine's own reader: threads read ahead with the system's calls."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import Reader
from engine.config import ComponentConfig
from engine.plugin.register import Register


@dataclass
class AheadConfig(ComponentConfig):
    """Threads read the files about in order, a little ahead; needs nothing installed."""

    name: str = "ahead"
    #: On the CPU, leave large tensors that stay as they are stored in their files' pages, common to all processes.
    mapped: bool = True


def ahead(config: AheadConfig) -> Reader:
    """Return the reader."""
    from engine.loading.safetensors_reader import AheadReader

    return AheadReader(mapped=config.mapped)


@hookimpl
def register_readers(register: Register[Reader]) -> None:
    register(ahead, AheadConfig)
