"""Safetensors files -> tensors at their place, read ahead of whoever takes them."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.components import Stored
from engine.errors import SourceError
from engine.loading.file_kinds import what_is

if TYPE_CHECKING:
    from torch import Tensor

#: Bytes read at a time, and how many such pieces may wait to be taken. One fits into a processor's own cache, where a
#: cast on the same thread finds what was just read: handing pieces to another thread took a third more processor time.
PIECE = 2**20
PIECES = 16
#: Bytes that a thread reads to the CPU, piece by piece, before it asks for more: asking takes as long as a cast.
_SPAN = 16 * PIECE
#: Values that torch casts on the thread it is called by, rather than on threads of its own.
_SERIAL = 2**15
#: The most that a load holds beside the tensors at their place.
BUFFER = PIECE * PIECES
#: Linux' MADV_POPULATE_READ and _WRITE (5.14 and later), which Python's mmap does not name.
POPULATE_READ, POPULATE_WRITE = 22, 23

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
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if (told := what_is(file)) is not None:
            raise SourceError(f"{file} is {told[0]}", field="source", hint=told[1]) from error
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

    A tensor that stays as it is stored, on the CPU, is left in its file if it is large and the reader may map: its
    pages are read, are the kernel's and common to all processes, and whoever writes to them has a copy. Else it is read
    straight into its place. Any other is cast piece by piece, by the thread that reads it on the CPU; where CUDA is the
    place, pieces are pinned and the caller moves them. So there never is a second copy of the model, nor one of a
    tensor, and beside the places there are at most `BUFFER` bytes. Threads are as many as torch computes with: what
    takes longest, on a CPU, is to touch fresh memory first. The kernel is asked for it by the span, which takes a tenth
    less than page by page.
    """

    def __init__(self, *, mapped: bool = True) -> None:
        """Make a reader; `mapped`: large tensors that stay as they are stored may be left in their files."""
        self.mapped = mapped

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`."""
        import torch

        rooms: deque[Tensor] = deque()
        waiting: deque[tuple[_Piece, Future[None]]] = deque()
        threads = ThreadPoolExecutor(min(PIECES, torch.get_num_threads()), "multitalk-read")
        with ExitStack() as files:
            try:
                for piece in _pieces(by_file(wanted), into, rooms, files, mapped=self.mapped):
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
    *,
    mapped: bool,
) -> Iterator[_Piece]:
    """Yield all pieces in the order in which they lie; files stay open until `opened` is closed. Raises SourceError."""
    for file, tensors in files.items():
        try:
            descriptor = opened.enter_context(file.open("rb", buffering=0)).fileno()
        except OSError as error:
            raise _unreadable(file, error) from error
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for stored in tensors.values():
            # No place is asked for in vain: memory that is let go again changes how the C library hands out the next.
            left = _left(descriptor, stored) if mapped and stored.stays and stored.size >= PIECE else None
            place = into(stored) if left is None else left
            step = _SPAN if place.device.type == "cpu" else PIECE
            for begin in range(0, max(1, stored.size), step):
                end = min(begin + step, stored.size)
                yield _Piece(stored, place, descriptor, begin, end, rooms, left=left is not None)


def _left(descriptor: int, stored: Stored) -> Tensor | None:
    """Return the tensor as it lies in its file, its pages not yet read; None where it cannot lie there.

    Raises SourceError for a file that ends before it.
    """
    import torch

    if stored.offset % stored.dtype.itemsize:
        return None
    begin = stored.offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    inside = stored.offset - begin
    try:
        pages = mmap.mmap(descriptor, inside + stored.size, access=mmap.ACCESS_COPY, offset=begin)
    except ValueError as error:
        raise _short(stored) from error
    except OSError:
        # Some file systems on a network have no such thing.
        return None
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        pages.madvise(mmap.MADV_SEQUENTIAL)
    count = stored.size // stored.dtype.itemsize
    return torch.frombuffer(pages, dtype=stored.dtype, count=count, offset=inside).view(stored.shape)


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
    #: Whether the place is the file itself.
    left: bool = False

    def read(self) -> None:
        """Read them, and on the CPU cast them to their place. Raises SourceError."""
        import torch

        if self.place.device.type != "cpu":
            self.room = self._room()
            self._fill(self.room[: self.end - self.begin], self.begin)
            return
        target = self._target(self.begin, self.end)
        if self.left:
            _read_pages(target, self.stored)
            return
        _touch(target)
        if target.dtype == self.stored.dtype:
            self._fill(target.view(torch.uint8), self.begin)
            return
        room = self._room()
        for begin in range(self.begin, self.end, PIECE):
            end = min(begin + PIECE, self.end)
            self._fill(room[: end - begin], begin)
            values, target = room[: end - begin].view(self.stored.dtype), self._target(begin, end)
            # By this thread alone, and without a return to Python, which one thread can be in at a time.
            torch._foreach_copy_(torch.split(target, _SERIAL), torch.split(values, _SERIAL))
        self.rooms.append(room)

    def put(self) -> None:
        """Bring to their place what has been read, unless it is there."""
        if self.room is not None:
            # Cast on the device.
            values = self.room[: self.end - self.begin].view(self.stored.dtype)
            self._target(self.begin, self.end).copy_(values.to(self.place.device))
            self.rooms.append(self.room)
            self.room = None

    def _room(self) -> Tensor:
        import torch

        try:
            return self.rooms.pop()
        except IndexError:
            if self.place.device.type == "cuda":
                return torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
            # Not the C library's, for it keeps more of what it hands out later once such a block was let go.
            return torch.frombuffer(mmap.mmap(-1, PIECE), dtype=torch.uint8)

    def _fill(self, target: Tensor, begin: int) -> None:
        """Read the tensor's bytes from `begin` on."""
        view, done = target.numpy().data, 0
        try:
            while done < len(view):
                count = os.preadv(self.descriptor, [view[done:]], self.stored.offset + begin + done)
                if count == 0:
                    raise _short(self.stored)
                done += count
        except OSError as error:
            raise _unreadable(self.stored.file, error) from error

    def _target(self, begin: int, end: int) -> Tensor:
        """Return where the tensor's bytes from `begin` to `end` go."""
        size = self.stored.dtype.itemsize
        return self.place.view(-1)[begin // size : end // size]


def _touch(target: Tensor) -> None:
    """Have the kernel hand out the memory of a tensor on the CPU at once, where it can."""
    begin = -(-target.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (target.data_ptr() + target.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        # Whether it can does not matter: pages come as they are written, then.
        advise(begin, end, POPULATE_WRITE)


def _read_pages(target: Tensor, stored: Stored) -> None:
    """Have the kernel read the pages of a file where a tensor was left. Raises SourceError."""
    import torch

    begin = target.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(target.data_ptr() + target.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    failed = advise(begin, end, POPULATE_READ)
    if failed == errno.EINVAL:
        # It cannot: one byte of each page has it read, too.
        target.view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()
    elif failed == errno.EFAULT:
        raise _short(stored)
    elif failed:
        raise _unreadable(stored.file, OSError(failed, os.strerror(failed)))


def advise(begin: int, end: int, advice: int) -> int:
    """Advise Linux about whole pages of memory, as madvise does; return what went wrong, 0 for nothing."""
    if sys.platform != "linux":
        return errno.EINVAL
    return ctypes.get_errno() if _madvise()(begin, end - begin, advice) else 0


@cache
def _madvise() -> Callable[[int, int, int], int]:
    # Python's own is for its own mappings alone.
    madvise: Callable[[int, int, int], int] = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)  # type: ignore[attr-defined]
    return madvise


def _short(stored: Stored) -> SourceError:
    return _damaged(stored.file, f"it ends within {stored.name}")


def _unreadable(file: Path, error: OSError) -> SourceError:
    return _damaged(file, error.strerror or type(error).__name__)


def _damaged(file: Path, why: str) -> SourceError:
    return SourceError(f"{file} is damaged: {why}", field="source", hint="get this file again")
