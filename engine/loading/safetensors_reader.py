"""Safetensors files -> tensors in their final memory; threads read ahead of the consumer."""

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

#: Bytes read at a time, and how many such pieces may wait for the consumer. One fits into a core's own cache, so that a
#: cast on the same thread finds the data there: passing pieces to another thread took a third more processor time.
PIECE = 2**20
PIECES = 16
#: Bytes that a thread reads to the CPU, piece by piece, as one task: scheduling a task takes as long as a cast.
_SPAN = 16 * PIECE
#: Values that torch casts on the calling thread, rather than on its own threads.
_SERIAL = 2**15
#: Maximum bytes that a load needs in addition to the tensors themselves.
BUFFER = PIECE * PIECES
#: Linux' MADV_POPULATE_READ and _WRITE (5.14 and later), which Python's mmap does not define.
POPULATE_READ, POPULATE_WRITE = 22, 23

#: Dtypes of the format -> names of torch dtypes.
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
    """Return the tensors of a safetensors file, by name, from its header alone.

    Raises SourceError for a file that is damaged, truncated or has an unsupported dtype.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The library checks that the header is valid and that the file has the length it states.
        with safe_open(file, "pt"), file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if (kind_and_hint := what_is(file)) is not None:
            raise SourceError(f"{file} is {kind_and_hint[0]}", field="source", hint=kind_and_hint[1]) from error
        raise _damaged(file, str(error)) from error
    header.pop("__metadata__", None)
    return {name: _stored(file, name, entry, 8 + length) for name, entry in header.items()}


def _stored(file: Path, name: str, entry: dict[str, Any], begin: int) -> Stored:
    import torch

    dtype = _DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise SourceError(
            f"{file} holds {name} as {entry['dtype']}", field="source", hint=f"supported: {', '.join(_DTYPES)}"
        )
    first, end = entry["data_offsets"]
    return Stored(file, name, getattr(torch, dtype), tuple(entry["shape"]), begin + first, end - first)


def by_file(tensors: Iterable[Stored]) -> dict[Path, dict[str, Stored]]:
    """Return the tensors of each file, by name, in file order."""
    files: dict[Path, dict[str, Stored]] = {}
    for stored in sorted(tensors, key=lambda stored: (stored.file, stored.offset)):
        files.setdefault(stored.file, {})[stored.name] = stored
    return files


class AheadReader:
    """Reads with plain system calls, roughly in file order: threads read while the caller places tensors.

    A large tensor that stays on the CPU in its stored dtype is mapped, if the reader may map: its pages are in the
    kernel's page cache, shared by all processes, and copied on write. A small one is read directly into its final
    memory. Any other tensor is cast piece by piece: on the CPU by the thread that reads it; for CUDA, pieces are pinned
    and the caller moves them. So there is never a second copy of the model or of a tensor, and at most `BUFFER` bytes
    are needed in addition. There are as many threads as torch computes with: on a CPU the first touch of fresh memory
    takes longest. The kernel is asked for memory by the span, which takes a tenth less time than page by page.
    """

    def __init__(self, *, mapped: bool = True) -> None:
        """Make a reader; `mapped`: large tensors that need no cast may be mapped from their files."""
        self.mapped = mapped

    def read(self, wanted: Sequence[Stored], into: Callable[[Stored], Tensor]) -> Iterator[tuple[Stored, Tensor]]:
        """See `components.Reader`."""
        import torch

        buffers: deque[Tensor] = deque()
        waiting: deque[tuple[_Piece, Future[None]]] = deque()
        threads = ThreadPoolExecutor(min(PIECES, torch.get_num_threads()), "multitalk-read")
        with ExitStack() as files:
            try:
                for piece in _pieces(by_file(wanted), into, buffers, files, mapped=self.mapped):
                    waiting.append((piece, threads.submit(piece.read)))
                    if len(waiting) == PIECES:
                        yield from _placed(*waiting.popleft())
                while waiting:
                    yield from _placed(*waiting.popleft())
            finally:
                # Before the files are closed: if the consumer stops early, pieces are still being read.
                threads.shutdown(cancel_futures=True)


def _placed(piece: _Piece, reading: Future[None]) -> Iterator[tuple[Stored, Tensor]]:
    """Wait for a piece, put it in place, and yield its tensor if this was the last piece of it."""
    reading.result()
    piece.put()
    if piece.end == piece.stored.size:
        yield piece.stored, piece.place


def _pieces(
    files: Mapping[Path, Mapping[str, Stored]],
    into: Callable[[Stored], Tensor],
    buffers: deque[Tensor],
    opened: ExitStack,
    *,
    mapped: bool,
) -> Iterator[_Piece]:
    """Yield all pieces in file order; files stay open until `opened` is closed. Raises SourceError."""
    for file, tensors in files.items():
        try:
            descriptor = opened.enter_context(file.open("rb", buffering=0)).fileno()
        except OSError as error:
            raise _unreadable(file, error) from error
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for stored in tensors.values():
            # `into` is only called if needed: memory that is freed again changes how the C library allocates the next.
            mapped_tensor = _mapped(descriptor, stored) if mapped and stored.stays and stored.size >= PIECE else None
            place = into(stored) if mapped_tensor is None else mapped_tensor
            step = _SPAN if place.device.type == "cpu" else PIECE
            for begin in range(0, max(1, stored.size), step):
                end = min(begin + step, stored.size)
                yield _Piece(stored, place, descriptor, begin, end, buffers, in_file=mapped_tensor is not None)


def _mapped(descriptor: int, stored: Stored) -> Tensor | None:
    """Return the tensor mapped from its file, its pages not yet read; None if it cannot be mapped.

    Raises SourceError if the file ends before it.
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
        # Some network file systems do not support mapping.
        return None
    if hasattr(mmap, "MADV_SEQUENTIAL"):
        pages.madvise(mmap.MADV_SEQUENTIAL)
    count = stored.size // stored.dtype.itemsize
    return torch.frombuffer(pages, dtype=stored.dtype, count=count, offset=inside).view(stored.shape)


@dataclass
class _Piece:
    """Bytes `begin` to `end` of a tensor: a thread reads them, the caller puts them in place."""

    stored: Stored
    place: Tensor
    descriptor: int
    begin: int
    end: int
    #: Free buffers of PIECE bytes, for pieces that are not read directly into place.
    buffers: deque[Tensor]
    #: The buffer in use.
    buffer: Tensor | None = None
    #: Whether `place` is mapped from the file.
    in_file: bool = False

    def read(self) -> None:
        """Read the bytes, and on the CPU cast them into place. Raises SourceError."""
        import torch

        if self.place.device.type != "cpu":
            self.buffer = self._new_buffer()
            self._fill(self.buffer[: self.end - self.begin], self.begin)
            return
        target = self._target(self.begin, self.end)
        if self.in_file:
            _read_pages(target, self.stored)
            return
        _touch(target)
        if target.dtype == self.stored.dtype:
            self._fill(target.view(torch.uint8), self.begin)
            return
        buffer = self._new_buffer()
        for begin in range(self.begin, self.end, PIECE):
            end = min(begin + PIECE, self.end)
            self._fill(buffer[: end - begin], begin)
            values, target = buffer[: end - begin].view(self.stored.dtype), self._target(begin, end)
            # On this thread only, in one call, because only one thread can run Python code at a time.
            torch._foreach_copy_(torch.split(target, _SERIAL), torch.split(values, _SERIAL))
        self.buffers.append(buffer)

    def put(self) -> None:
        """Put the bytes in place, unless they are there already."""
        if self.buffer is not None:
            # Cast on the device.
            values = self.buffer[: self.end - self.begin].view(self.stored.dtype)
            self._target(self.begin, self.end).copy_(values.to(self.place.device))
            self.buffers.append(self.buffer)
            self.buffer = None

    def _new_buffer(self) -> Tensor:
        import torch

        try:
            return self.buffers.pop()
        except IndexError:
            if self.place.device.type == "cuda":
                return torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
            # Not from the C library, which keeps more freed memory after a block of this size was freed once.
            return torch.frombuffer(mmap.mmap(-1, PIECE), dtype=torch.uint8)

    def _fill(self, target: Tensor, begin: int) -> None:
        """Read the tensor's bytes from `begin` on."""
        view, filled = target.numpy().data, 0
        try:
            while filled < len(view):
                count = os.preadv(self.descriptor, [view[filled:]], self.stored.offset + begin + filled)
                if count == 0:
                    raise _short(self.stored)
                filled += count
        except OSError as error:
            raise _unreadable(self.stored.file, error) from error

    def _target(self, begin: int, end: int) -> Tensor:
        """Return the destination of the tensor's bytes from `begin` to `end`."""
        size = self.stored.dtype.itemsize
        return self.place.view(-1)[begin // size : end // size]


def _touch(target: Tensor) -> None:
    """Make the kernel allocate a CPU tensor's pages at once, if it can."""
    begin = -(-target.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (target.data_ptr() + target.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > begin:
        # If it cannot, pages are allocated as they are written.
        advise(begin, end, POPULATE_WRITE)


def _read_pages(target: Tensor, stored: Stored) -> None:
    """Make the kernel read the pages of a mapped tensor. Raises SourceError."""
    import torch

    begin = target.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    end = -(-(target.data_ptr() + target.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    failed = advise(begin, end, POPULATE_READ)
    if failed == errno.EINVAL:
        # It cannot: reading one byte of each page has the same effect.
        target.view(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()
    elif failed == errno.EFAULT:
        raise _short(stored)
    elif failed:
        raise _unreadable(stored.file, OSError(failed, os.strerror(failed)))


def advise(begin: int, end: int, advice: int) -> int:
    """Call madvise for whole pages of memory; return the error number, 0 for success."""
    if sys.platform != "linux":
        return errno.EINVAL
    return ctypes.get_errno() if _madvise()(begin, end - begin, advice) else 0


@cache
def _madvise() -> Callable[[int, int, int], int]:
    # Python's madvise works only on its own mappings.
    madvise: Callable[[int, int, int], int] = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)  # type: ignore[attr-defined]
    return madvise


def _short(stored: Stored) -> SourceError:
    return _damaged(stored.file, f"it ends within {stored.name}")


def _unreadable(file: Path, error: OSError) -> SourceError:
    return _damaged(file, error.strerror or type(error).__name__)


def _damaged(file: Path, why: str) -> SourceError:
    return SourceError(f"{file} is damaged: {why}", field="source", hint="get this file again")
