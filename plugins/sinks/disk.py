"""Keep videos in a folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from engine import hookimpl
from engine.components import LiveFolder, Sink
from engine.config import SinkConfig
from engine.data import Artifact, Kept
from engine.errors import SinkError
from engine.files.atomic import Part, make_folder, part_in, sweep
from engine.files.live import DiskLiveFolder
from engine.plugin.register import Register


@dataclass
class DiskConfig(SinkConfig):
    """A folder on this machine: sink.folder, or the folder of --output."""

    name: str = "disk"
    #: The folder of the videos.
    folder: str = "."
    #: Replace an existing file of the same name.
    overwrite: bool = False
    #: Create the folder and its parents if they do not exist.
    mkdir: bool = True


class DiskSink:
    """Puts videos into a folder. A file appears only when it is complete and synchronised to disk."""

    #: Name, without suffix, of a video whose request has no file name.
    STEM = "talk"

    def __init__(self, config: DiskConfig) -> None:
        """Access no file yet; `check` does."""
        self.folder = Path(config.folder).absolute()
        self.overwrite = config.overwrite
        self.mkdir = config.mkdir

    def check(self, filename: str | None) -> None:
        """Raise SinkError if no file of that name can be written to the folder. Creates no folder."""
        if not self.folder.exists() and self.mkdir:
            above = next(folder for folder in self.folder.parents if folder.exists())
            if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
                raise self._unusable(f"cannot be created in {above}")
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

    def live(self, filename: str | None) -> LiveFolder:
        """Return a folder beside the video, as STEM.live, or the next free name if it exists."""
        stem = self.STEM if filename is None else Path(filename).stem
        folders = [self.folder / f"{stem}{number}.live" for number in ("", *(f"-{n}" for n in range(2, 1000)))]
        return DiskLiveFolder(folders, overwrite=self.overwrite, key="sink.folder")

    def put(self, artifact: Artifact) -> Kept:
        """Move the video into the folder and return its absolute path.

        Without a file name: talk.mp4, talk-2.mp4, ... the first free name. Raises SinkError, and then leaves no
        new file.
        """
        try:
            if self.mkdir:
                make_folder(self.folder)
            # Removes what a killed run left behind.
            sweep(self.folder, self.STEM)
            with part_in(self.folder, self.STEM) as part:
                part.adopt(artifact.path)
                with part.path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                    size = file.tell()
                path = self._place(part, artifact.filename)
        except OSError as error:
            raise self._unusable(f"cannot store the video: {error.strerror or error}") from error
        return Kept(str(path), None, sha256, size)

    def _place(self, part: Part, filename: str | None) -> Path:
        names = _free_names(self.STEM) if filename is None else iter((filename,))
        for name in names:
            path = self.folder / name
            with suppress(FileExistsError):
                part.name(path, replace=self.overwrite and filename is not None)
                return path
        raise self._taken(self.folder / (filename or self.STEM))

    def _check_free(self, path: Path) -> None:
        if path.is_dir():
            raise SinkError(f"{path} is a folder", field="request.filename", hint="choose another name")
        if path.exists() and not self.overwrite:
            raise self._taken(path)

    def _taken(self, path: Path) -> SinkError:
        return SinkError(
            f"{path} already exists", field="request.filename", hint="choose another name or sink.overwrite=true"
        )

    def _unusable(self, why: str) -> SinkError:
        return SinkError(f"{self.folder} {why}", field="sink.folder", hint="choose a folder that can be written to")


def _free_names(stem: str) -> Iterator[str]:
    yield f"{stem}.mp4"
    for number in count(2):
        yield f"{stem}-{number}.mp4"


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer `sink=disk`."""
    register(DiskSink, DiskConfig)
