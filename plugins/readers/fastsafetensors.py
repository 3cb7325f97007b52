"""fastsafetensors: reads whole files directly into GPU memory, with GPUDirect Storage if it is set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engine import hookimpl
from engine.components import Reader, Stored
from engine.config import ComponentConfig
from engine.errors import MissingExtra
from engine.loading.safetensors_reader import by_file
from engine.plugin.register import Register

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class FastsafetensorsConfig(ComponentConfig):
    """fastsafetensors: holds one whole file on the device while its tensors are placed."""

    name: str = "fastsafetensors"
    #: Use GPUDirect Storage.
    gds: bool = False


class Fastsafetensors:
    """Copies a whole file to the device, and its tensors from there to their places."""

    def __init__(self, config: FastsafetensorsConfig) -> None:
        """Raises MissingExtra without the package."""
        if find_spec("fastsafetensors") is None:
            raise MissingExtra("reader=fastsafetensors", "fastsafetensors", "fastsafetensors")
        self.gds = config.gds

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`; the buffer is as large as the largest file."""
        from fastsafetensors import SafeTensorsFileLoader, SingleGroup

        for file, stored in by_file(wanted).items():
            # The place of the first tensor determines the device.
            first = next(iter(stored))
            places = {first: into(stored[first])}
            loader = SafeTensorsFileLoader(SingleGroup(), str(places[first].device), nogds=not self.gds)
            try:
                loader.add_filenames({0: [str(file)]})
                buffer = loader.copy_files_to_device()
                for name, tensor in stored.items():
                    place = places.pop(name) if name in places else into(tensor)
                    yield tensor, place.copy_(buffer.get_tensor(name))
                buffer.close()
            finally:
                loader.close()


@hookimpl
def register_readers(register: Register[Reader]) -> None:
    register(Fastsafetensors, FastsafetensorsConfig)
