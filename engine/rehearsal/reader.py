"""A reader that puts tensors in place without reading their data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from safetensors import safe_open as _SAFE_OPEN

from engine.components import Stored
from engine.loading.safetensors_reader import BUFFER, by_file, stored_tensors

if TYPE_CHECKING:
    from torch import Tensor


class HeaderReader:
    """Goes through the files like engine.loading.safetensors_reader.AheadReader, but reads no data."""

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`. For a CUDA device each piece goes through pinned memory, as with AheadReader."""
        import torch

        room: Tensor | None = None
        for tensors in by_file(wanted).values():
            for stored in tensors.values():
                place = into(stored)
                if place.device.type == "cuda" and stored.size:
                    room = torch.empty(BUFFER, dtype=torch.uint8, pin_memory=True) if room is None else room
                    flat, size = place.view(-1), stored.dtype.itemsize
                    # Fewer and larger pieces than AheadReader's, with the same total of bytes.
                    for begin in range(0, stored.size, BUFFER):
                        end = min(begin + BUFFER, stored.size)
                        values = room[: end - begin].view(stored.dtype)
                        flat[begin // size : end // size].copy_(values.to(place.device))
                yield stored, place


@contextmanager
def headers_only() -> Iterator[None]:
    """Make safetensors files return fake tensors according to their headers, inside a `with`."""
    with (
        patch("safetensors.safe_open", _open),
        patch("safetensors.torch.load_file", lambda path, *_, **__: dict(_Opened(path).all())),
    ):
        yield


def _open(path: Any, framework: str = "pt", device: Any = "cpu") -> Any:
    opened = _SAFE_OPEN(path, framework, device)
    return _Opened(path) if framework == "pt" else opened


class _Opened:
    """Replaces safetensors.safe_open: checks header and file as it does, but reads no data."""

    def __init__(self, path: Any) -> None:
        self._path = Path(path)

    @cached_property
    def _stored(self) -> dict[str, Stored]:
        return stored_tensors(self._path)

    def __enter__(self) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def keys(self) -> list[str]:
        return sorted(self._stored)

    def offset_keys(self) -> list[str]:
        return sorted(self._stored, key=lambda name: self._stored[name].offset)

    def get_tensor(self, name: str) -> Tensor:
        import torch

        stored = self._stored[name]
        return torch.empty(stored.shape, dtype=stored.dtype)

    def all(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.get_tensor(name)) for name in self._stored)
