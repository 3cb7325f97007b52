"""Safetensors files -> tensors at their place, read ahead of whoever takes them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from engine.errors import SourceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Bytes read at a time, and how many such pieces may wait to be taken. One fits into a processor's own cache, where a
#: cast on the same thread finds what was just read: handing pieces to another thread took a third more processor time.
PIECE = 2**20
PIECES = 16
#: The most that a load holds beside the tensors at their place.
BUFFER = PIECE * PIECES

#: Dtypes of the format -> torch's names.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file."""

    file: Path
    #: As the file calls it.
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    #: Bytes from the file's start to the tensor, and of the tensor.
    offset: int
    size: int


def stored_tensors(file: Path) -> dict[str, Stored]:
    """Return what a safetensors file holds, by name, from its header alone.

    Raises SourceError for a file that is damaged, cut short or holds a dtype that is not read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks that the header is sound and that the file is as long as it says.
        with safe_open(file, "pt"), file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    header.pop("__metadata__", None)
    return {name: _stored(file, name, told, 8 + length) for name, told in header.items()}


def _stored(file: Path, name: str, told: dict[str, Any], begin: int) -> Stored:
    import torch

    dtype = _DTYPES.get(str(told["dtype"]))
    if dtype is None:
        raise SourceError(
            f"{file} holds {name} as {told['dtype']}", field="source", hint=f"readable: {', '.join(_DTYPES)}"
        )
    first, end = told["data_offsets"]
    return Stored(file, name, getattr(torch, dtype), tuple(told["shape"]), begin + first, end - first)


def by_file(wanted: Iterable[Stored]) -> dict[Path, dict[str, Stored]]:
    """Return the tensors of each file, by name, in the order in which they lie there."""
    files: dict[Path, dict[str, Stored]] = {}
    for stored in sorted(wanted, key=lambda stored: (stored.file, stored.offset)):
        files.setdefault(stored.file, {})[stored.name] = stored
    return files


class AheadReader:
    """Reads with the system's own calls, in the order of the files: a thread reads while the caller places.

    A tensor that stays as it is stored is read straight into its place on the CPU. Any other is cast piece by piece, by
    that thread on the CPU; where CUDA is the place, pieces are pinned and the caller moves them. So there never is a
    second copy of the model, nor one of a tensor, and beside the places there are at most `BUFFER` bytes.
    """

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`."""
        free: SimpleQueue[Tensor | None] = SimpleQueue()
        filled: SimpleQueue[_Piece | BaseException | None] = SimpleQueue()
        reading = threading.Thread(
            target=_read_ahead, args=(by_file(wanted), into, free, filled), name="multitalk-read", daemon=True
        )
        reading.start()
        try:
            while (piece := filled.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                if piece.place.device.type != "cpu":
                    piece.put()
                free.put(piece.room)
                if piece.last:
                    yield piece.stored, piece.place
        finally:
            # Whoever stops taking leaves the thread waiting for room.
            free.put(None)
            reading.join()


@dataclass(frozen=True)
class _Piece:
    """Some bytes of a tensor, and the room they take until they are taken."""

    stored: Stored
    place: Tensor
    room: Tensor
    #: Bytes of the tensor before the piece.
    begin: int
    #: uint8, where the piece is read to: maybe its place itself.
    target: Tensor

    @property
    def last(self) -> bool:
        return self.begin + len(self.target) == self.stored.size

    def put(self) -> None:
        """Cast the piece and bring it to its place; its target is free afterwards."""
        values = self.target.view(self.stored.dtype)
        begin = self.begin // self.stored.dtype.itemsize
        # Cast on the device.
        self.place.view(-1)[begin : begin + len(values)].copy_(values.to(self.place.device))


def _read_ahead(
    files: Mapping[Path, Mapping[str, Stored]],
    into: Callable[[Stored], Tensor],
    free: SimpleQueue[Tensor | None],
    filled: SimpleQueue[_Piece | BaseException | None],
) -> None:
    """Read pieces while there is room. What ends the reading is the last thing filled: None, or an exception."""
    import torch

    own = torch.empty(PIECE, dtype=torch.uint8)
    rooms = 0
    try:
        for file, tensors in files.items():
            with file.open("rb", buffering=0) as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                for stored in tensors.values():
                    place = into(stored)
                    here = place.device.type == "cpu"
                    straight = here and place.dtype == stored.dtype
                    for begin in range(0, max(1, stored.size), PIECE):
                        if rooms < PIECES:
                            rooms += 1
                            # On the CPU nothing is written to it: it only counts.
                            pinned = place.device.type == "cuda"
                            room: Tensor | None = torch.empty(PIECE, dtype=torch.uint8, pin_memory=pinned)
                        else:
                            room = free.get()
                        if room is None:
                            return
                        end = min(begin + PIECE, stored.size)
                        if straight:
                            target = place.view(-1).view(torch.uint8)[begin:end]
                        else:
                            target = (own if here else room)[: end - begin]
                        piece = _Piece(stored, place, room, begin, target)
                        _read_whole(opened.fileno(), piece)
                        if here and not straight:
                            piece.put()
                        filled.put(piece)
        filled.put(None)
    except OSError as error:
        filled.put(_damaged(file, error.strerror or type(error).__name__))
    except BaseException as error:  # noqa: BLE001 - raised where the tensors are taken
        filled.put(error)


def _read_whole(descriptor: int, piece: _Piece) -> None:
    view = piece.target.numpy().data
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], piece.stored.offset + piece.begin + done)
        if count == 0:
            raise _damaged(piece.stored.file, f"it ends within {piece.stored.name}")
        done += count


def _damaged(file: Path, why: str) -> SourceError:
    return SourceError(f"{file} is damaged: {why}", field="source", hint="get this file again")
