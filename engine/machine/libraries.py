"""Compiled libraries of installed packages: the CUDA version for which they were compiled, from their files."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from engine.errors import ConfigError

_LOAD, _DYNAMIC = 1, 2  # kinds of program headers
_END, _NEEDED, _STRTAB, _STRSZ = 0, 1, 5, 10  # tags of the dynamic section
_CUDA_RUNTIME = re.compile(r"libcudart\.so\.(\d+)")


def needed(path: Path) -> tuple[str, ...]:
    """Return the names of the shared libraries that `path` needs, as in `readelf --dynamic`.

    Reads 64-bit little-endian ELF (System V's ABI, gabi, chapters 4 and 5), only its headers and names.
    Raises ValueError for another file.
    """
    with path.open("rb") as file:
        try:
            return tuple(_needed(file))
        except (struct.error, OSError) as error:
            raise ValueError(f"{path} is not a complete ELF file") from error


def _needed(file: BinaryIO) -> Iterator[str]:
    if _read(file, 0, 6) != b"\x7fELF\x02\x01":
        raise ValueError(f"{file.name} is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack("<Q", _read(file, 0x20, 8))
    size, count = struct.unpack("<HH", _read(file, 0x36, 4))
    # Kind, flags, offset, virtual address, physical address, size in the file, size in memory, alignment.
    headers = [struct.unpack("<IIQQQQQQ", _read(file, table + size * number, 56)) for number in range(count)]
    loaded = [header for header in headers if header[0] == _LOAD]
    dynamic = [header for header in headers if header[0] == _DYNAMIC]
    if not dynamic:
        return
    entries = list(_entries(_read(file, dynamic[0][2], dynamic[0][5])))
    values = dict(entries)
    if _STRTAB not in values:
        return
    names = _read(file, _offset(loaded, values[_STRTAB]), values[_STRSZ])
    for tag, value in entries:
        if tag == _NEEDED:
            yield names[value : names.index(b"\0", value)].decode()


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise struct.error
    return data


def _entries(section: bytes) -> Iterator[tuple[int, int]]:
    for tag, value in struct.iter_unpack("<QQ", section[: len(section) // 16 * 16]):
        if tag == _END:
            return
        yield tag, value


def _offset(loaded: Iterable[tuple[int, ...]], address: int) -> int:
    """Return the file offset of an address of the loaded program."""
    return next(
        address - virtual + offset
        for _, _, offset, virtual, _, size, *_ in loaded
        if virtual <= address < virtual + size
    )


def cuda_of(path: Path) -> int | None:
    """Return the major CUDA version whose runtime a library needs; None if it needs none. Raises ValueError."""
    matches = (_CUDA_RUNTIME.fullmatch(name) for name in needed(path))
    return next((int(match[1]) for match in matches if match), None)


def compiled(module: str) -> list[Path]:
    """Return the compiled files of an importable module: its own, or all in its folder. Nothing is imported."""
    spec = find_spec(module)
    origin = getattr(spec, "origin", None)
    if origin is not None and ".so" in Path(origin).suffixes:
        return [Path(origin)]
    folders = getattr(spec, "submodule_search_locations", None) or ()
    return sorted(path for folder in folders for path in Path(folder).rglob("*.so*") if path.is_file())


def misfit(package: str, modules: Iterable[str], cuda: str | None) -> str | None:
    """Return in one line why `package` cannot be used with a torch that includes CUDA `cuda`; None if it can.

    `modules` are those with its compiled files; `cuda` is `torch.version.cuda`. A library works only with the major
    version of the runtime for which it was compiled: the loader looks for exactly that file name.
    """
    ours = None if cuda is None else int(cuda.partition(".")[0])
    for path in (path for module in modules for path in compiled(module)):
        try:
            required = cuda_of(path)
        except ValueError:
            continue
        if required not in (None, ours):
            has = f"torch here brings CUDA {cuda}" if cuda else "torch here is built without CUDA"
            needs = f"{path.name} needs libcudart.so.{required}"
            return f"{_with_version(package)} is compiled for CUDA {required} ({needs}), and {has}"
    return None


def require_fitting(choice: str, package: str, modules: Iterable[str]) -> None:
    """Raise ConfigError if `package`, which `choice` (group=name) needs, is compiled for another CUDA than torch."""
    import torch

    problem = misfit(package, modules, torch.version.cuda)
    if problem is not None:
        raise ConfigError(
            f"{choice}: {problem}",
            field=choice.partition("=")[0],
            hint=f"choose attention=sdpa, or install builds of {package} and torch for one CUDA",
        )


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
