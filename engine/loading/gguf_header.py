"""The header of a GGUF file, read within limits: the gguf package, which reads it next, trusts all its counts.

Source: the format's specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from engine.errors import MissingExtra, SourceError
from engine.loading.file_kinds import what_is

#: Limits: tensors, entries, and values of all lists together. The largest models have some thousand tensors, and a
#: tokenizer's vocabulary of 256 000 is stored in three lists.
_TENSORS, _ENTRIES, _VALUES = 2**17, 2**16, 2**20
#: Limits: bytes of a name (from the specification) and of other text, and number of dimensions.
_NAME, _TEXT, _DIMENSIONS = 2**16, 2**24, 8
#: Type numbers -> bytes of one value; text and lists store their own lengths.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT_KIND, _LIST_KIND = 8, 9
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)


@dataclass(frozen=True)
class Packed:
    """A tensor of a GGUF file."""

    #: Quantisation type, numbered as in the gguf package.
    kind: int
    #: Rows first, as in torch; counts values, not packed bytes.
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Packed]:
    """Return the tensors of a GGUF file by name, after checking every count against the file's size and limits.

    Raises MissingExtra without the package gguf, and SourceError for a file that is damaged, cut short or no GGUF file.
    """
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingExtra("quant=gguf", "gguf", "gguf") from error
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(data).read(sizes)
    except (ValueError, OSError, struct.error) as error:
        # struct.error: a number lies beyond the end of the file.
        if (kind_and_hint := what_is(path)) is not None and "GGUF" not in kind_and_hint[0]:
            raise SourceError(f"{path} is {kind_and_hint[0]}", field="source", hint=kind_and_hint[1]) from error
        why = "it ends within its header" if isinstance(error, struct.error) else str(error)
        raise SourceError(f"{path} is damaged: {why}", field="source", hint="get this file again") from error


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._values = 0
        self._alignment = 32

    def read(self, sizes: dict[int, tuple[int, int]]) -> dict[str, Packed]:
        if self._data[:4] != _MAGIC:
            raise ValueError("it is not a GGUF file")
        self._at = 4
        version = self._number("<I")
        if version not in _VERSIONS:
            raise ValueError("its version of the format is not supported, or its byte order is not")
        tensors, entries = self._number("<Q"), self._number("<Q")
        self._bound(tensors, _TENSORS, "tensors")
        self._bound(entries, _ENTRIES, "entries")
        for _ in range(entries):
            name = self._text(_NAME)
            kind = self._number("<I")
            if name == b"general.alignment" and kind == 4:
                (self._alignment,) = struct.unpack_from("<I", self._data, self._at)
            self._skip(kind)
        tensors_by_name: dict[str, tuple[Packed, int]] = {}
        for _ in range(tensors):
            name = self._text(_NAME)
            dimensions = self._number("<I")
            self._bound(dimensions, _DIMENSIONS, "dimensions")
            shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
            tensors_by_name[name.decode("utf-8")] = Packed(self._number("<I"), shape), self._number("<Q")
        if not 0 < self._alignment <= 2**20 or self._alignment & (self._alignment - 1):
            raise ValueError("its alignment is invalid")
        begin = -(-self._at // self._alignment) * self._alignment
        for packed, offset in tensors_by_name.values():
            if packed.kind not in sizes:
                raise ValueError(f"it has values of type {packed.kind}, which the gguf package does not know")
            block, width = sizes[packed.kind]
            # Python's integers do not overflow.
            count = prod(packed.shape)
            if count % block or begin + offset + count // block * width > len(self._data):
                raise ValueError("it ends within its tensors, or states invalid sizes")
        return {name: packed for name, (packed, _) in tensors_by_name.items()}

    def _number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def _bound(self, count: int, most: int, what: str) -> None:
        if count > most:
            raise ValueError(f"it states {count} {what}, more than any model has")

    def _text(self, most: int) -> bytes:
        length = self._number("<Q")
        if length > most or self._at + length > len(self._data):
            raise ValueError("a name or text in its header is longer than allowed")
        self._at += length
        return self._data[self._at - length : self._at]

    def _skip(self, kind: int) -> None:
        """Skip a value."""
        if kind == _TEXT_KIND:
            self._text(_TEXT)
        elif kind == _LIST_KIND:
            inner, count = self._number("<I"), self._number("<Q")
            self._values += count
            self._bound(self._values, _VALUES, "values in its header")
            if inner == _TEXT_KIND:
                for _ in range(count):
                    self._text(_TEXT)
            else:
                self._pass(inner, count)
        else:
            self._pass(kind, 1)

    def _pass(self, kind: int, count: int) -> None:
        if kind not in _WIDTHS:
            raise ValueError("a value in its header has an unknown type")
        self._at += _WIDTHS[kind] * count
        if self._at > len(self._data):
            raise ValueError("it ends within its header")
