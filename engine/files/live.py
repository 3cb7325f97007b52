"""A folder of a video that is published while it is made."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from engine.data.live import PLAYLIST
from engine.errors import SinkError
from engine.files.atomic import make_folder, write

#: Beginnings of the names of parts.
_PARTS = ("init", "part-")


class DiskLiveFolder:
    """A folder with a playlist and its parts; it is created with the first part."""

    def __init__(
        self, folders: Sequence[Path], *, url: str | None = None, overwrite: bool = False, key: str = "live.folder"
    ) -> None:
        """Use the first of `folders` that does not exist; with `overwrite` the first one, without its old parts.

        `url` is the address under which a web server offers the folder, and `key` that of the config that names it.
        """
        self._folders, self._url, self._overwrite, self._key = folders, url, overwrite, key
        self._folder: Path | None = None

    @property
    def address(self) -> str:
        """See `LiveFolder`."""
        if self._url is not None:
            return f"{self._url.rstrip('/')}/{PLAYLIST}"
        return str((self._folder or self._folders[0]) / PLAYLIST)

    def part(self, name: str, content: bytes, media_type: str) -> str:
        """See `LiveFolder`."""
        try:
            write(self._opened() / name, content)
        except OSError as error:
            raise self._unusable(error) from error
        return name

    def playlist(self, text: str) -> None:
        """See `LiveFolder`."""
        try:
            write(self._opened() / PLAYLIST, text.encode())
        except OSError as error:
            raise self._unusable(error) from error

    def remove(self) -> None:
        """See `LiveFolder`."""
        if self._folder is None:
            return
        try:
            _clear(self._folder)
            # Fails if somebody has put other files there.
            with suppress(OSError):
                self._folder.rmdir()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> SinkError:
        # Without the path, which callers of a worker must not see.
        what = f"the folder of {self._key} cannot be written to: {error.strerror or type(error).__name__}"
        return SinkError(what, field=self._key, hint="free space there or choose another folder")

    def _opened(self) -> Path:
        if self._folder is None:
            make_folder(self._folders[0].parent)
            for folder in self._folders:
                try:
                    folder.mkdir()
                except FileExistsError:
                    if not self._overwrite or not folder.is_dir():
                        continue
                    _clear(folder)
                self._folder = folder
                break
            else:
                raise FileExistsError("all names for a live folder are taken")
        return self._folder


def remove_job(folder: Path, job: str) -> None:
    """Remove everything that was published for a job below `folder`. Never raises."""
    shutil.rmtree(folder / job, ignore_errors=True)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name == PLAYLIST or (path.name.startswith(_PARTS) and path.suffix in (".mp4", ".m4s")):
            path.unlink()
