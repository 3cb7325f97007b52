"""The engine's own reader: threads read ahead with the system's calls."""

from __future__ import annotations

from dataclasses import dataclass

from engine import hookimpl
from engine.components import Reader
from engine.config import ComponentConfig
from engine.register import Register


@dataclass
class AheadConfig(ComponentConfig):
    """Threads read the files about in order, a little ahead; needs nothing installed."""

    name: str = "ahead"


def ahead(config: AheadConfig) -> Reader:
    """Return the reader."""
    from engine.tensors import AheadReader

    return AheadReader()


@hookimpl
def register_readers(register: Register[Reader]) -> None:
    register(ahead, AheadConfig)
