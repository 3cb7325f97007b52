"""Where videos wait that could not be delivered, until their job comes again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.data import Artifact
from engine.errors import SinkError
from engine.files.atomic import claimed, make_folder, part_in, sweep, write

logger = logging.getLogger(__name__)

#: What can be the name of a job here, and part of a key in a store.
JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Waiting:
    """A video that waits, and what its note says of its bytes: None in notes of earlier versions."""

    artifact: Artifact
    bytes: int | None = None
    sha256: str | None = None

    def check(self) -> None:
        """Read the video. Raises SinkError for another than the one that was kept; the file stays where it is."""
        path = self.artifact.path
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise _damaged(path, f"it cannot be read: {error.strerror or error}") from error
        if self.bytes is not None and size != self.bytes:
            raise _damaged(path, f"it has {size} bytes, and had {self.bytes}")
        if self.sha256 is not None and found != self.sha256:
            raise _damaged(path, "its SHA-256 is another")
        if not size:
            raise _damaged(path, "it is empty")


class Shelf:
    """Folders with <job>.mp4, and <job>.json with what has to be known to deliver it.

    A note is written when its video is on the disk, and says how long that is and its SHA-256.
    """

    def __init__(self, folders: Sequence[Path], *, named: bool) -> None:
        """Look at nothing yet. `named`: the folder is somebody's choice, to be made wherever it is to lie."""
        self._folders = folders
        self._named = named

    def folder(self) -> Path:
        """Return the first folder that can be written to. Raises SinkError."""
        for folder in self._folders:
            # A volume that is not mounted is not made: what lies in its place would be gone with the container.
            above = next(up for up in (folder, *folder.parents) if up.exists())
            mounted = self._named or above in (folder, folder.parent)
            if mounted and above.is_dir() and os.access(above, os.W_OK | os.X_OK):
                return folder
        raise SinkError(
            "there is no folder to keep a video in whose upload fails",
            field="sink.keep_folder",
            hint="name one that can be written to, on a volume that outlives this machine",
            code="s3_no_keep_folder",
        )

    def put(self, artifact: Artifact, name: str, *, own: bool, sha256: str, size: int) -> Path:
        """Take a copy of the video and return its path. Raises OSError and SinkError."""
        folder = self.folder()
        make_folder(folder, mode=0o700)
        path = folder / f"{name}.mp4"
        # What was killed here.
        sweep(folder, name)
        note = {
            "media_type": artifact.media_type,
            "seconds": artifact.seconds,
            "frames": artifact.frames,
            "filename": artifact.filename,
            "own": own,
            "bytes": size,
            "sha256": sha256,
        }
        # Two workers may have made the same job: the note is to be about the video that lies there.
        with claimed(path):
            if artifact.path != path:
                self._copy(artifact.path, path, sha256)
            # Last: a video with its note is whole.
            write(path.with_suffix(".json"), json.dumps(note).encode())
        return path

    def find(self, name: str, *, own: bool) -> Waiting:
        """Return the video that waits under this name. `own`: its job's bucket is at hand. Raises SinkError."""
        for folder in self._folders if JOB.fullmatch(name) else ():
            path = folder / f"{name}.mp4"
            try:
                told = json.loads((folder / f"{name}.json").read_text("utf-8"))
                artifact = Artifact(path, told["media_type"], told["seconds"], told["frames"], told["filename"])
                waiting = Waiting(artifact, told.get("bytes"), told.get("sha256"))
                belongs = bool(told["own"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if not path.is_file():
                continue
            if belongs is not own:
                whose = "the job's own bucket" if belongs else "the configured bucket"
                hint = f"resume it with {whose}"
                raise SinkError(f"the kept video belongs into {whose}", field="request.store", hint=hint)
            return waiting
        hint = "make it again"
        raise SinkError("no video is kept for this job", field="request.job", hint=hint, code="s3_nothing_kept")

    def clear(self, name: str) -> None:
        """Remove what waits under this name, if anything does."""
        for folder in self._folders:
            # The note first: a video without one is no promise.
            remove(folder / f"{name}.json")
            remove(folder / f"{name}.mp4")

    def _copy(self, source: Path, path: Path, sha256: str) -> None:
        # An older note must not speak for the new video, whatever happens between the two.
        path.with_suffix(".json").unlink(missing_ok=True)
        digest = hashlib.sha256()
        with part_in(path.parent, path.stem) as part, source.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
                part.file.write(piece)
            if digest.hexdigest() != sha256:
                raise SinkError("the video changed while it was kept", field="sink", hint="make it again")
            part.name(path, replace=True)


def remove(path: Path) -> None:
    """Remove a file that is delivered. Never raises: what remains is no reason to call the job failed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s is uploaded and cannot be removed: %s", path, error.strerror)


def _damaged(path: Path, why: str) -> SinkError:
    # The path is for the log: who asks may be on another machine.
    logger.error("the kept video %s is damaged: %s", path, why)
    return SinkError(
        f"the kept video is damaged: {why}",
        field="request.job",
        hint="it is not removed; send the job under another name to have it made again",
        code="s3_kept_damaged",
    )
