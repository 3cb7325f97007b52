"""A reader that maps each file and copies its tensors, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import Reader, Stored
from engine.config import ComponentConfig
from engine.errors import SourceError
from engine.loading.safetensors_reader import by_file
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class MappedConfig(ComponentConfig):
    """Tensors by safetensors' own library."""

    name: str = "mapped"


class Mapped:
    """Reads with `safe_open`."""

    def __init__(self, config: MappedConfig) -> None:
        pass

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """Yield each tensor in the place that `into` returns for it."""
        from safetensors import SafetensorError, safe_open

        for file, stored in by_file(wanted).items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for name, found in stored.items():
                        yield found, into(found).copy_(opened.get_tensor(name))
            except SafetensorError as error:
                raise SourceError(f"{file} is damaged: {error}", field="source", hint="get this file again") from error


@hookimpl
def register_readers(register: Register[Reader]) -> None:
    """Offer `reader=mapped`."""
    register(Mapped, MappedConfig)
