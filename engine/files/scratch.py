"""Folders of temporary files: one for each piece of work, gone with it, and swept later where a process was killed.

A folder in use holds a file that its process keeps locked. The kernel gives the lock back when the process ends, in
whatever way; so a folder whose file can be locked belongs to nobody any more.
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
#: The file that is locked. Folders without it are not ours to remove, whatever their name.
MARK = ".multitalk-scratch"
#: Errors by which a disk says that it takes no more.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_CODE = "disk_unwritable"
_HINT = "free the disk of temporary files, or name a folder that can be written in TMPDIR"
#: What `tempfile` makes behind the prefix.
_NAME = re.compile(r"multitalk-(?:[a-z]+-)?[a-z0-9_]{8}")
#: Seconds after which an empty folder without the file is a leftover: its process was killed before it made one.
_EMPTY = 3600.0
_swept: set[str] = set()
_sweeping = threading.Lock()


class Scratch:
    """One folder, from its making until `close`."""

    def __init__(self, kind: str = "") -> None:
        """`kind` follows the prefix, such as "batch-". Raises EngineError where no folder can be made."""
        where = place()
        with _sweeping:
            if where not in _swept:
                _swept.add(where)
                sweep(Path(where))
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX + kind, dir=where))
            self._lock = _mark(self.path)
        except OSError as error:
            raise _error(error) from error

    def close(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def scratch(kind: str = "") -> Iterator[Path]:
    """Give a new folder of temporary files, for as long as the block runs. Raises EngineError (disk_unwritable)."""
    folder = Scratch(kind)
    try:
        yield folder.path
    finally:
        folder.close()


def place() -> str:
    """Return the folder in which temporary files are made. Raises EngineError where there is none.

    `tempfile` takes another one without a word where TMPDIR cannot be used: maybe on the disk that must not fill.
    """
    named = os.environ.get("TMPDIR")
    if tempfile.tempdir is None and named:
        if not Path(named).is_dir():
            raise _error(OSError(errno.ENOENT, ""))
        if not os.access(named, os.W_OK | os.X_OK):
            raise _error(OSError(errno.EACCES, ""))
    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise _error(error) from error


def sweep(where: Path) -> int:
    """Remove the folders below `where` that processes left behind which were killed; return how many.

    Only this user's, only those with the file that a living process keeps locked. What cannot be removed stays.
    """
    swept = 0
    try:
        entries = [entry for entry in os.scandir(where) if _NAME.fullmatch(entry.name)]
    except OSError:
        return 0
    for entry in entries:
        with contextlib.suppress(OSError):
            about = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid():
                swept += _sweep(Path(entry.path), time.time() - about.st_mtime)
    return swept


def unwritable(error: OSError) -> RequestError:
    """Return the error of a request whose files the disk did not take."""
    return RequestError(_what(error), hint=_HINT, code=_CODE)


def _error(error: OSError) -> EngineError:
    return EngineError(_what(error), hint=_HINT, code=_CODE)


def _what(error: OSError) -> str:
    return f"temporary files cannot be written: {os.strerror(error.errno) if error.errno else error}"


def _mark(folder: Path) -> int | None:
    """Make the folder's file and keep it locked; None: locks are not to be had here, and the folder is never swept."""
    made = folder / f"{MARK}.part"
    handle = os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(handle, f"{os.getpid()}\n".encode())
    except OSError as error:
        os.close(handle)
        made.unlink(missing_ok=True)
        if error.errno in FULL:
            raise
        return None
    # Locked first and named then: nobody finds it unlocked while its process lives.
    made.rename(folder / MARK)
    return handle


def _sweep(folder: Path, age: float) -> bool:
    try:
        handle = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if age < _EMPTY:
            return False
        # Removes it only if it is empty.
        (folder / f"{MARK}.part").unlink(missing_ok=True)
        folder.rmdir()
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(handle)
    return True
