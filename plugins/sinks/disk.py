"""Keep videos in a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from engine import hookimpl
from engine.components import Sink
from engine.config import SinkConfig
from engine.data import Artifact, Kept
from engine.errors import SinkError
from engine.register import Register


@dataclass
class DiskConfig(SinkConfig):
    """A folder on this machine: sink.folder, or the folder of --output."""

    name: str = "disk"
    folder: str = "."
    #: Replace a file that already bears the name asked for.
    overwrite: bool = False
    #: Make the folder, and those above it, if they are not there.
    mkdir: bool = True


class DiskSink:
    """Puts videos into a folder; a file appears there whole or not at all."""

    #: Name of a video whose request named none, without its suffix.
    STEM = "talk"

    def __init__(self, config: DiskConfig) -> None:
        """Look at nothing yet; `check` does."""
        self.folder = Path(config.folder).absolute()
        self.overwrite = config.overwrite
        self.mkdir = config.mkdir

    def check(self, filename: str | None) -> None:
        """Raise SinkError if the folder cannot take a file of that name. Makes no folder."""
        if not self.folder.exists() and self.mkdir:
            above = next(folder for folder in self.folder.parents if folder.exists())
            if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
                raise self._unusable(f"cannot be made in {above}")
            return
        if not self.folder.is_dir():
            raise self._unusable("is not a folder" if self.folder.exists() else "does not exist")
        try:
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise self._unusable(f"cannot be written to: {error.strerror}") from error
        if filename is not None:
            self._check_free(self.folder / filename)

    def put(self, artifact: Artifact) -> Kept:
        """Move the video into the folder and return its absolute path.

        Without a file name: talk.mp4, talk-2.mp4, ... whichever is free. Raises SinkError; the folder then holds
        nothing new.
        """
        try:
            if self.mkdir:
                self.folder.mkdir(parents=True, exist_ok=True)
            part = self._bring(artifact.path)
        except OSError as error:
            raise self._unusable(f"cannot take the video: {error.strerror or error}") from error
        try:
            with part.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
            path = self._place(part, artifact.filename)
        except OSError as error:
            raise self._unusable(f"cannot take the video: {error.strerror or error}") from error
        finally:
            part.unlink(missing_ok=True)
        return Kept(str(path), None, sha256, size)

    def _bring(self, source: Path) -> Path:
        """Move `source` to a hidden name in the folder, through a copy if it lies on another file system."""
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=f".{self.STEM}-", suffix=".part")
        os.close(handle)
        part = Path(name)
        try:
            try:
                source.replace(part)
            except OSError:
                # Copying keeps mkstemp's mode, which is for this user alone.
                shutil.copyfile(source, part)
                part.chmod(source.stat().st_mode & 0o777)
                source.unlink()
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    def _place(self, part: Path, filename: str | None) -> Path:
        if filename is not None and self.overwrite:
            path = self.folder / filename
            part.replace(path)
            return path
        names = _free_names(self.STEM) if filename is None else iter((filename,))
        for name in names:
            path = self.folder / name
            with suppress(FileExistsError):
                _link(part, path)
                return path
        raise self._taken(self.folder / (filename or self.STEM))

    def _check_free(self, path: Path) -> None:
        if path.is_dir():
            raise SinkError(f"{path} is a folder", field="request.filename", hint="choose another name")
        if path.exists() and not self.overwrite:
            raise self._taken(path)

    def _taken(self, path: Path) -> SinkError:
        return SinkError(f"{path} exists", field="request.filename", hint="choose another name or sink.overwrite=true")

    def _unusable(self, why: str) -> SinkError:
        return SinkError(f"{self.folder} {why}", field="sink.folder", hint="choose a folder that can be written to")


def _free_names(stem: str) -> Iterator[str]:
    yield f"{stem}.mp4"
    for number in count(2):
        yield f"{stem}-{number}.mp4"


def _link(part: Path, path: Path) -> None:
    """Give `part` its name `path`, atomically. Raises FileExistsError rather than replace a file."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without hard links: claim the name with an empty file, then replace that.
        path.touch(exist_ok=False)
        try:
            part.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=disk`."""
    register(DiskSink, DiskConfig)
