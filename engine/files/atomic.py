"""Atomic writes: a file gets its name only when it is complete and on disk, even if power is lost.

A file is first written under a hidden name that ends in `.part`. Its bytes are on the disk before it gets its own name,
and the name is on the disk before the call returns. A killed process leaves only such parts behind; `sweep` removes
them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO, Any, cast

SUFFIX = ".part"
#: Suffix of the lock file for a name, on file systems that can neither rename without replacing nor link.
_CLAIM = ".claim"
#: Seconds after which another machine's part counts as abandoned; whether its process still runs cannot be known.
_OLD = 3600.0
#: Seconds in which a new part may not be locked yet.
_YOUNG = 2.0
#: Maximum seconds for which another process may lock a name with a lock file.
_LEASE = 60.0
#: One of Linux's rename flags (include/uapi/linux/fs.h), and one of its AT_ constants.
_NOREPLACE = 1
_AT_FDCWD = -100


class Part:
    """A file under a hidden name that only this process uses, until it gets its own name."""

    def __init__(self, path: Path) -> None:
        """Create the file with the default mode of new files. Raises OSError."""
        self.path = path
        self._synced = False
        self._files: list[IO[bytes]] = [path.open("x+b")]
        _locked_elsewhere(self.file)

    @property
    def file(self) -> IO[bytes]:
        """The open file."""
        return self._files[-1]

    def adopt(self, source: Path) -> None:
        """Move `source` here: by a rename, or if that is not possible by a copy with its mode.

        Raises OSError; then `source` still exists.
        """
        file = source.open("rb")
        self._files.append(file)
        # Lock it before it gets a name that `sweep` removes.
        _locked_elsewhere(file)
        try:
            source.replace(self.path)
        except OSError:
            self._files.pop().close()
            with source.open("rb") as read:
                shutil.copyfileobj(read, self.file, 2**20)
                os.fchmod(self.file.fileno(), os.fstat(read.fileno()).st_mode & 0o777)
            self.file.flush()
            source.unlink()

    def name(self, path: Path, *, replace: bool) -> None:
        """Rename the file to `path`, in its own folder. First its bytes, then its name are synced to the disk.

        Raises FileExistsError if `path` exists, unless `replace` is set; and OSError.
        """
        if not self._synced:
            self.file.flush()
            # fsync also works for files that were opened for reading.
            os.fsync(self.file.fileno())
            self._synced = True
        if replace:
            self.path.replace(path)
        else:
            rename_new(self.path, path)
        sync_folder(path.parent)

    def drop(self) -> None:
        """Remove the file if it has not been renamed."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        for file in self._files:
            with suppress(OSError):
                file.close()


@contextmanager
def part_in(folder: Path, stem: str) -> Iterator[Part]:
    """Create a part in `folder` that no other process uses; remove it if it gets no name. Raises OSError."""
    part = Part(folder / part_name(stem))
    try:
        yield part
    finally:
        part.drop()


def part_name(stem: str) -> str:
    """Return a new hidden name, which `sweep` finds by the same `stem`."""
    return f".{_short(stem)}-{_machine()}-{secrets.token_hex(4)}{SUFFIX}"


def write(path: Path, content: bytes) -> None:
    """Write a file atomically; it replaces an existing one. Raises OSError."""
    sweep(path.parent, path.name)
    with part_in(path.parent, path.name) as part:
        part.file.write(content)
        part.name(path, replace=True)


def sweep(folder: Path, stem: str) -> list[Path]:
    """Remove the parts of `stem` in `folder` whose processes have ended; return them. Never raises.

    On this machine a lock shows whether a process still writes; another machine's part is removed after an hour without
    a write.
    """
    stem, candidates = _short(stem), []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            part = entry.name.endswith(SUFFIX) and entry.name.startswith((f".{stem}-", f".{stem}."))
            if part or (entry.name.endswith(_CLAIM) and entry.name.startswith(".")):
                candidates.append(Path(entry.path))
    return [path for path in candidates if _remove_abandoned(path, stem)]


def rename_new(part: Path, path: Path) -> None:
    """Rename `part` to `path` atomically. Raises FileExistsError if `path` exists, and OSError."""
    if _rename_noreplace(part, path):
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # The file system can do neither: the name is locked by a file beside it, never by an empty file of that name.
        with lock_name(path):
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            part.replace(path)
        return
    part.unlink()


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Create a folder and its missing parents, and sync their names to the disk. Raises OSError."""
    missing = [up for up in (folder, *folder.parents) if not up.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for created in missing:
        sync_folder(created.parent)


def sync(path: Path) -> None:
    """Sync the bytes of a file to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Sync the names in `folder` to the disk, if the file system supports it."""
    with suppress(OSError):
        sync(folder)


def _rename_noreplace(part: Path, path: Path) -> bool:
    """Rename with the kernel's RENAME_NOREPLACE; return False if it is not supported. Raises FileExistsError."""
    rename = _renameat2()
    if rename is None or not rename(_AT_FDCWD, os.fsencode(part), _AT_FDCWD, os.fsencode(path), _NOREPLACE):
        return rename is not None
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        raise FileExistsError(code, os.strerror(code), str(path))
    # EINVAL and similar: not supported. If the error has another reason, the next method raises it.
    return False


@cache
def _renameat2() -> Callable[..., int] | None:
    # Python does not offer it, nor does every C library.
    try:
        function: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return cast("Callable[..., int]", function)


@contextmanager
def lock_name(path: Path) -> Iterator[None]:
    """Lock the name `path` against other processes of this program, on all machines of the folder. Raises OSError."""
    claim = path.with_name(f".{_short(path.name)}{_CLAIM}")
    until = time.monotonic() + 2 * _LEASE
    while (file := _claim(claim)) is None:
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, "another process has locked the name", str(path))
        time.sleep(0.05)
    with file:
        try:
            yield
        finally:
            # Removed before the lock is released: a process that has it open sees that the name is another file's.
            claim.unlink(missing_ok=True)


def _claim(claim: Path) -> IO[bytes] | None:
    """Create the file `claim`, or take over that of an ended process; None while another process has it locked."""
    ours, created = _machine().encode(), True
    try:
        file: IO[bytes] = claim.open("x+b", buffering=0)
        file.write(ours)
    except FileExistsError:
        created = False
        try:
            file = claim.open("r+b", buffering=0)
        except FileNotFoundError:
            return None
    with suppress(FileNotFoundError):
        locked_elsewhere = _locked_elsewhere(file)
        file.seek(0)
        owner, age = file.read(), time.time() - os.fstat(file.fileno()).st_mtime
        # On one machine the lock decides, between machines the file's age. A new file is empty for a moment.
        dead = locked_elsewhere is False and (owner == ours or (not owner and age > _YOUNG))
        expired = created or dead or age > _LEASE
        if not locked_elsewhere and expired and os.path.samestat(os.fstat(file.fileno()), claim.stat()):
            file.seek(0)
            file.write(ours)
            return file
    file.close()
    return None


def _short(stem: str) -> str:
    """Return `stem`, or its hash if a hidden name with it would be longer than file names may be."""
    return stem if len(os.fsencode(stem)) <= 160 else hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]


@cache
def _machine() -> str:
    """Return an id that all processes on this kernel share, also in containers, until the next boot."""
    try:
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except (OSError, ValueError):
        return "0" * 8
    return re.sub(r"[^0-9a-f]", "", boot_id)[:8].ljust(8, "0")


def _locked_elsewhere(file: IO[bytes]) -> bool | None:
    """Return whether another process has locked the file, and lock it if not; None if locks are not supported."""
    try:
        # The kernel releases it when the process ends, for whatever reason.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # Some network volumes do not support locks.
        return None
    return False


def _remove_abandoned(path: Path, stem: str) -> bool:
    with suppress(OSError), path.open("rb") as file:
        age = time.time() - os.fstat(file.fileno()).st_mtime
        locked_elsewhere = _locked_elsewhere(file)
        # A free lock is only meaningful between processes of one machine.
        dead = locked_elsewhere is False and path.name.startswith(f".{stem}-{_machine()}-") and age > _YOUNG
        if not locked_elsewhere and (dead or age > _OLD):
            path.unlink()
            return True
    return False
