"""Files that bear their name whole or not at all, and do so after a loss of power too.

What is written lies under a hidden name first, which ends in `.part`. Its bytes are on the disk before it gets its own
name, and the name is on the disk before anybody is told of it. A killed process leaves such parts behind and nothing
else; `sweep` removes them.
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
#: Of the file that holds a name where the file system knows no better way.
_CLAIM = ".claim"
#: Seconds after which a part counts as left behind though nobody can say whether its process lives: another machine's.
_OLD = 3600.0
#: Seconds in which a part may not be locked yet.
_YOUNG = 2.0
#: Seconds for which another process may hold a name on a file system that knows no better way.
_LEASE = 60.0
#: Of Linux' rename flags (include/uapi/linux/fs.h), and of its AT_ constants.
_NOREPLACE = 1
_AT_FDCWD = -100


class Part:
    """A file under a hidden name, of this process alone, until it is given its own."""

    def __init__(self, path: Path) -> None:
        """Make the file; its mode is that of any new file. Raises OSError."""
        self.path = path
        self._settled = False
        self._files: list[IO[bytes]] = [path.open("x+b")]
        _held(self.file)

    @property
    def file(self) -> IO[bytes]:
        """The open file."""
        return self._files[-1]

    def adopt(self, source: Path) -> None:
        """Take the place of `source`: by a rename, or by a copy with its mode where that is not possible.

        Raises OSError; `source` is still there then.
        """
        file = source.open("rb")
        self._files.append(file)
        # Before it bears a name that is swept.
        _held(file)
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
        """Give the file its name, in its own folder: bytes first, then the name, each on the disk before this goes on.

        Raises FileExistsError rather than replace a file, unless `replace`; and OSError.
        """
        if not self._settled:
            self.file.flush()
            # Files that were opened to read can be synced, too.
            os.fsync(self.file.fileno())
            self._settled = True
        if replace:
            self.path.replace(path)
        else:
            rename_new(self.path, path)
        sync_folder(path.parent)

    def drop(self) -> None:
        """Remove the file if it still has no name of its own."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        for file in self._files:
            with suppress(OSError):
                file.close()


@contextmanager
def part_in(folder: Path, stem: str) -> Iterator[Part]:
    """Make a part in `folder` that no other process shares, and remove it if it gets no name. Raises OSError."""
    part = Part(folder / part_name(stem))
    try:
        yield part
    finally:
        part.drop()


def part_name(stem: str) -> str:
    """Return a new hidden name that `sweep` knows by the same `stem`."""
    return f".{_short(stem)}-{_machine()}-{secrets.token_hex(4)}{SUFFIX}"


def write(path: Path, content: bytes) -> None:
    """Write a file, in place of the one of that name if there is one, whole or not at all. Raises OSError."""
    sweep(path.parent, path.name)
    with part_in(path.parent, path.name) as part:
        part.file.write(content)
        part.name(path, replace=True)


def sweep(folder: Path, stem: str) -> list[Path]:
    """Remove the parts of `stem` in `folder` whose processes are gone; return them. Never raises.

    Of this machine's a lock says whether somebody still writes; another machine's are old after an hour without a byte.
    """
    stem, found = _short(stem), []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            part = entry.name.endswith(SUFFIX) and entry.name.startswith((f".{stem}-", f".{stem}."))
            if part or (entry.name.endswith(_CLAIM) and entry.name.startswith(".")):
                found.append(Path(entry.path))
    return [path for path in found if _swept(path, stem)]


def rename_new(part: Path, path: Path) -> None:
    """Give `part` its name `path`, at once. Raises FileExistsError rather than replace a file, and OSError."""
    if _rename_noreplace(part, path):
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system with neither: the name is claimed by a lock beside it, never by an empty file.
        with claimed(path):
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
            part.replace(path)
        return
    part.unlink()


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder, and those above it, unless they are there; their names are on the disk then. Raises OSError."""
    missing = [up for up in (folder, *folder.parents) if not up.exists()]
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sync(path: Path) -> None:
    """Have the bytes of a file on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk, where the file system can."""
    with suppress(OSError):
        sync(folder)


def _rename_noreplace(part: Path, path: Path) -> bool:
    """Rename as one step of the kernel's; False where kernel or file system cannot. Raises FileExistsError."""
    rename = _renameat2()
    if rename is None or not rename(_AT_FDCWD, os.fsencode(part), _AT_FDCWD, os.fsencode(path), _NOREPLACE):
        return rename is not None
    code = ctypes.get_errno()
    if code == errno.EEXIST:
        raise FileExistsError(code, os.strerror(code), str(path))
    # EINVAL and its like; what else is wrong, the next way meets and tells.
    return False


@cache
def _renameat2() -> Callable[..., int] | None:
    # Python has no name for it, nor does every C library.
    try:
        found: Any = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return cast("Callable[..., int]", found)


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the name `path` against other processes of ours, on all machines that share the folder. Raises OSError."""
    claim = path.with_name(f".{_short(path.name)}{_CLAIM}")
    until = time.monotonic() + 2 * _LEASE
    while (file := _claim(claim)) is None:
        if time.monotonic() > until:
            raise OSError(errno.EBUSY, "another process holds the name", str(path))
        time.sleep(0.05)
    with file:
        try:
            yield
        finally:
            # While it is held: whoever opened it meanwhile finds that it is no longer the one of that name.
            claim.unlink(missing_ok=True)


def _claim(claim: Path) -> IO[bytes] | None:
    """Make the file `claim`, or take over the one of a process that is gone; None while another holds it."""
    ours, made = _machine().encode(), True
    try:
        file: IO[bytes] = claim.open("x+b", buffering=0)
        file.write(ours)
    except FileExistsError:
        made = False
        try:
            file = claim.open("r+b", buffering=0)
        except FileNotFoundError:
            return None
    with suppress(FileNotFoundError):
        held = _held(file)
        file.seek(0)
        told, age = file.read(), time.time() - os.fstat(file.fileno()).st_mtime
        # The lock decides on one machine, the file's age among several. Between making it and writing lies a moment.
        dead = held is False and (told == ours or (not told and age > _YOUNG))
        if not held and (made or dead or age > _LEASE) and os.path.samestat(os.fstat(file.fileno()), claim.stat()):
            file.seek(0)
            file.write(ours)
            return file
    file.close()
    return None


def _short(stem: str) -> str:
    """Return what stands for a file's name in a hidden one, which must not be longer than names may be."""
    return stem if len(os.fsencode(stem)) <= 160 else hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]


@cache
def _machine() -> str:
    """Return what all processes that share this kernel have in common, containers too, until it is booted anew."""
    try:
        told = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    except (OSError, ValueError):
        return "0" * 8
    return re.sub(r"[^0-9a-f]", "", told)[:8].ljust(8, "0")


def _held(file: IO[bytes]) -> bool | None:
    """Return whether another process holds the file, and hold it if none does; None where nobody can say."""
    try:
        # Goes with its process, however that ends.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # Some network volumes know no locks.
        return None
    return False


def _swept(path: Path, stem: str) -> bool:
    with suppress(OSError), path.open("rb") as file:
        age = time.time() - os.fstat(file.fileno()).st_mtime
        held = _held(file)
        # A lock that nobody holds says something among processes of one machine alone.
        dead = held is False and path.name.startswith(f".{stem}-{_machine()}-") and age > _YOUNG
        if not held and (dead or age > _OLD):
            path.unlink()
            return True
    return False
