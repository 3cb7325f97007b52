"""The Run:ai model streamer: many threads read one file, which suits network disks."""

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
class RunaiConfig(ComponentConfig):
    """runai-model-streamer: its RUNAI_STREAMER_* variables set threads and buffer."""

    name: str = "runai"


class Runai:
    """Copies each tensor to its place at once, because the streamer reuses its buffer."""

    def __init__(self, config: RunaiConfig) -> None:
        """Raises MissingExtra without the package."""
        if find_spec("runai_model_streamer") is None:
            raise MissingExtra("reader=runai", "runai-model-streamer", "runai")

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`."""
        from runai_model_streamer import SafetensorsStreamer

        for file, stored in by_file(wanted).items():
            with SafetensorsStreamer() as streamer:
                streamer.stream_file(str(file), tensor_names=list(stored), owned=False)
                for name, tensor in streamer.get_tensors():
                    yield stored[name], into(stored[name]).copy_(tensor)


@hookimpl
def register_readers(register: Register[Reader]) -> None:
    register(Runai, RunaiConfig)
