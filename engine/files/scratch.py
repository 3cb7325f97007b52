"""Folders of temporary files: one per task, removed with it; those of killed processes are removed later.

A folder in use contains a file that its process keeps locked. The kernel releases the lock when the process ends, for
whatever reason, so a folder whose file can be locked is no longer in use.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import EngineError, RequestError

PREFIX = "multitalk-"
#: The locked file. Folders without it are never removed, whatever their name.
MARK = ".multitalk-scratch"
#: Errors of a disk that is full or read-only.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_CODE = "disk_unwritable"
_HINT = "free the disk of temporary files, or set TMPDIR to a writable folder"
#: The names that `tempfile` makes with the prefix.
_NAME = re.compile(r"multitalk-(?:[a-z]+-)?[a-z0-9_]{8}")
#: Seconds after which an empty folder without the file is abandoned: its process was killed before it created one.
_EMPTY = 3600.0
_swept: set[str] = set()
_sweeping = threading.Lock()


class Scratch:
    """One folder, which exists until `close`."""

    def __init__(self, kind: str = "") -> None:
        """Create the folder; `kind` follows the prefix, such as "batch-". Raises EngineError (disk_unwritable)."""
        parent = place()
        with _sweeping:
            if parent not in _swept:
                _swept.add(parent)
                sweep(Path(parent))
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX + kind, dir=parent))
            self._lock = _mark(self.path)
        except OSError as error:
            raise _error(error) from error

    def close(self) -> None:
        """Remove the folder and its content."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def scratch(kind: str = "") -> Iterator[Path]:
    """Yield a new folder of temporary files, which is removed afterwards. Raises EngineError (disk_unwritable)."""
    folder = Scratch(kind)
    try:
        yield folder.path
    finally:
        folder.close()


def place() -> str:
    """Return the folder in which temporary files are created. Raises EngineError if there is none.

    If TMPDIR cannot be used, `tempfile` silently uses another folder, possibly on a disk that must not fill up.
    """
    tmpdir = os.environ.get("TMPDIR")
    if tempfile.tempdir is None and tmpdir:
        if not Path(tmpdir).is_dir():
            raise _error(OSError(errno.ENOENT, ""))
        if not os.access(tmpdir, os.W_OK | os.X_OK):
            raise _error(OSError(errno.EACCES, ""))
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise _error(error) from error


def sweep(parent: Path) -> int:
    """Remove the folders of killed processes in `parent`; return their number.

    Only folders of this user with an unlocked lock file are removed. Errors are ignored.
    """
    removed = 0
    try:
        entries = [entry for entry in os.scandir(parent) if _NAME.fullmatch(entry.name)]
    except OSError:
        return 0
    for entry in entries:
        with contextlib.suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                removed += _sweep(Path(entry.path), time.time() - status.st_mtime)
    return removed


def unwritable(error: OSError) -> RequestError:
    """Return the error of a request whose files cannot be written to the disk."""
    return RequestError(_what(error), hint=_HINT, code=_CODE)


def _error(error: OSError) -> EngineError:
    return EngineError(_what(error), hint=_HINT, code=_CODE)


def _what(error: OSError) -> str:
    return f"temporary files cannot be written: {os.strerror(error.errno) if error.errno else error}"


def _mark(folder: Path) -> int | None:
    """Create the folder's file and lock it; None: locks are not supported here, so the folder is never swept."""
    part = folder / f"{MARK}.part"
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(handle, f"{os.getpid()}\n".encode())
    except OSError as error:
        os.close(handle)
        part.unlink(missing_ok=True)
        if error.errno in FULL:
            raise
        return None
    # Locked before it is renamed: it is never unlocked under its final name while its process runs.
    part.rename(folder / MARK)
    return handle


def _sweep(folder: Path, age: float) -> bool:
    try:
        handle = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if age < _EMPTY:
            return False
        # rmdir removes it only if it is empty.
        (folder / f"{MARK}.part").unlink(missing_ok=True)
        folder.rmdir()
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(handle)
    return True
