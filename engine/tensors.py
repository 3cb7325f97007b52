"""Safetensors files -> tensors at their place, read ahead of whoever takes them."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import SourceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Bytes read at a time, and how many such pieces may wait to be taken. One fits into a processor's own cache, where a
#: cast on the same thread finds what was just read: handing pieces to another thread took a third more processor time.
PIECE = 2**20
PIECES = 16
#: Values that torch casts on the thread it is called by, rather than on threads of its own.
_SERIAL = 2**15
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
    """Reads with the system's own calls, about in the order of the files: threads read while the caller places.

    A tensor that stays as it is stored is read straight into its place on the CPU. Any other is cast piece by piece, by
    the thread that reads it on the CPU; where CUDA is the place, pieces are pinned and the caller moves them. So there
    never is a second copy of the model, nor one of a tensor, and beside the places there are at most `BUFFER` bytes.
    Threads are as many as torch computes with: what takes longest, on a CPU, is to touch fresh memory first.
    """

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`."""
        import torch

        rooms: deque[Tensor] = deque()
        waiting: deque[tuple[_Piece, Future[None]]] = deque()
        threads = ThreadPoolExecutor(min(PIECES, torch.get_num_threads()), "multitalk-read")
        with ExitStack() as files:
            try:
                for piece in _pieces(by_file(wanted), into, rooms, files):
                    waiting.append((piece, threads.submit(piece.read)))
                    if len(waiting) == PIECES:
                        yield from _taken(*waiting.popleft())
                while waiting:
                    yield from _taken(*waiting.popleft())
            finally:
                # Before the files are closed: whoever stops taking leaves pieces that are being read.
                threads.shutdown(cancel_futures=True)


def _taken(piece: _Piece, reading: Future[None]) -> Iterator[tuple[Stored, Tensor]]:
    """Wait for a piece, have it placed, and yield its tensor if it is the last of it."""
    reading.result()
    piece.put()
    if piece.end == piece.stored.size:
        yield piece.stored, piece.place


def _pieces(
    files: Mapping[Path, Mapping[str, Stored]],
    into: Callable[[Stored], Tensor],
    rooms: deque[Tensor],
    opened: ExitStack,
) -> Iterator[_Piece]:
    """Yield all pieces in the order in which they lie; files stay open until `opened` is closed. Raises SourceError."""
    for file, tensors in files.items():
        try:
            descriptor = opened.enter_context(file.open("rb", buffering=0)).fileno()
        except OSError as error:
            raise _unreadable(file, error) from error
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for stored in tensors.values():
            place = into(stored)
            for begin in range(0, max(1, stored.size), PIECE):
                yield _Piece(stored, place, descriptor, begin, min(begin + PIECE, stored.size), rooms)


@dataclass
class _Piece:
    """Bytes `begin` to `end` of a tensor: a thread reads them, its caller has them put to their place."""

    stored: Stored
    place: Tensor
    descriptor: int
    begin: int
    end: int
    #: Free ones of PIECE bytes, where pieces are read to that are not read to their place.
    rooms: deque[Tensor]
    #: The one that is taken.
    room: Tensor | None = None

    def read(self) -> None:
        """Read them, and on the CPU cast them to their place. Raises SourceError."""
        import torch

        here = self.place.device.type == "cpu"
        if here and self.place.dtype == self.stored.dtype:
            self._fill(self.place.view(-1).view(torch.uint8)[self.begin : self.end])
            return
        try:
            room = self.rooms.pop()
        except IndexError:
            room = torch.empty(PIECE, dtype=torch.uint8, pin_memory=self.place.device.type == "cuda")
        self._fill(room[: self.end - self.begin])
        self.room = room
        if here:
            values, target = self._values(), self._target()
            # By this thread alone: torch would give each thread as many of its own.
            for part in (slice(begin, begin + _SERIAL) for begin in range(0, len(values), _SERIAL)):
                target[part].copy_(values[part])
            self._free()

    def put(self) -> None:
        """Bring to their place what has been read, unless it is there."""
        if self.room is not None:
            # Cast on the device.
            self._target().copy_(self._values().to(self.place.device))
            self._free()

    def _fill(self, target: Tensor) -> None:
        view, done = target.numpy().data, 0
        try:
            while done < len(view):
                count = os.preadv(self.descriptor, [view[done:]], self.stored.offset + self.begin + done)
                if count == 0:
                    raise _damaged(self.stored.file, f"it ends within {self.stored.name}")
                done += count
        except OSError as error:
            raise _unreadable(self.stored.file, error) from error

    def _values(self) -> Tensor:
        assert self.room is not None, "it has been read"
        return self.room[: self.end - self.begin].view(self.stored.dtype)

    def _target(self) -> Tensor:
        size = self.stored.dtype.itemsize
        return self.place.view(-1)[self.begin // size : self.end // size]

    def _free(self) -> None:
        assert self.room is not None, "it has been read"
        self.rooms.append(self.room)
        self.room = None


def _unreadable(file: Path, error: OSError) -> SourceError:
    return _damaged(file, error.strerror or type(error).__name__)


def _damaged(file: Path, why: str) -> SourceError:
    return SourceError(f"{file} is damaged: {why}", field="source", hint="get this file again")
