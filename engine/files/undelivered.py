"""Videos that could not be delivered, kept until their job is sent again."""

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
from engine.files.atomic import lock_name, make_folder, part_in, sweep, write

logger = logging.getLogger(__name__)

#: Valid names of jobs, which also become part of a key in a store.
JOB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class UndeliveredVideo:
    """An undelivered video, with the size and SHA-256 from its note."""

    artifact: Artifact
    #: None in notes of earlier versions, as `sha256`.
    bytes: int | None = None
    sha256: str | None = None

    def check(self) -> None:
        """Read and verify the video. Raises SinkError if it changed since it was stored; the file is not removed."""
        path = self.artifact.path
        try:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise _damaged(path, f"it cannot be read: {error.strerror or error}") from error
        if self.bytes is not None and size != self.bytes:
            raise _damaged(path, f"it has {size} bytes instead of {self.bytes}")
        if self.sha256 is not None and sha256 != self.sha256:
            raise _damaged(path, "its SHA-256 changed")
        if not size:
            raise _damaged(path, "it is empty")


class Shelf:
    """Folders with <job>.mp4, and <job>.json, a note with everything that delivering the video needs.

    The note is written after its video is on the disk, and contains the video's size and SHA-256.
    """

    def __init__(self, folders: Sequence[Path], *, named: bool) -> None:
        """Access no folder yet. `named`: the user chose the folder, so it is created even if its parent is missing."""
        self._folders = folders
        self._named = named

    def folder(self) -> Path:
        """Return the first writable folder. Raises SinkError."""
        for folder in self._folders:
            # The mount point of a missing volume is not created: its content would be lost with the container.
            above = next(up for up in (folder, *folder.parents) if up.exists())
            mounted = self._named or above in (folder, folder.parent)
            if mounted and above.is_dir() and os.access(above, os.W_OK | os.X_OK):
                return folder
        raise SinkError(
            "there is no folder for videos whose upload fails",
            field="sink.keep_folder",
            hint="set it to a writable folder on a volume that outlives this machine",
            code="s3_no_keep_folder",
        )

    def put(self, artifact: Artifact, name: str, *, own: bool, sha256: str, size: int) -> Path:
        """Store a copy of the video and return its path. Raises OSError and SinkError."""
        folder = self.folder()
        make_folder(folder, mode=0o700)
        path = folder / f"{name}.mp4"
        # Remove parts of killed processes.
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
        # Two workers may have done the same job: the note must describe the stored video.
        with lock_name(path):
            if artifact.path != path:
                self._copy(artifact.path, path, sha256)
            # Written last: a video with a note is complete.
            write(path.with_suffix(".json"), json.dumps(note).encode())
        return path

    def find(self, name: str, *, own: bool) -> UndeliveredVideo:
        """Return the undelivered video of this name. `own`: the job brings its own bucket. Raises SinkError."""
        for folder in self._folders if JOB.fullmatch(name) else ():
            path = folder / f"{name}.mp4"
            try:
                note = json.loads((folder / f"{name}.json").read_text("utf-8"))
                artifact = Artifact(path, note["media_type"], note["seconds"], note["frames"], note["filename"])
                video = UndeliveredVideo(artifact, note.get("bytes"), note.get("sha256"))
                needs_own_bucket = bool(note["own"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
            if not path.is_file():
                continue
            if needs_own_bucket is not own:
                bucket = "the job's own bucket" if needs_own_bucket else "the configured bucket"
                hint = f"resume it with {bucket}"
                raise SinkError(f"the stored video is for {bucket}", field="request.store", hint=hint)
            return video
        hint = "make it again"
        raise SinkError("no video is stored for this job", field="request.job", hint=hint, code="s3_nothing_kept")

    def clear(self, name: str) -> None:
        """Remove the undelivered video of this name, if there is one."""
        for folder in self._folders:
            # The note first: a video without a note is ignored.
            remove(folder / f"{name}.json")
            remove(folder / f"{name}.mp4")

    def _copy(self, source: Path, path: Path, sha256: str) -> None:
        # An older note must not describe the new video, even if this process is killed before the new note is written.
        path.with_suffix(".json").unlink(missing_ok=True)
        digest = hashlib.sha256()
        with part_in(path.parent, path.stem) as part, source.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
                part.file.write(piece)
            if digest.hexdigest() != sha256:
                raise SinkError("the video changed while it was copied", field="sink", hint="make it again")
            part.name(path, replace=True)


def remove(path: Path) -> None:
    """Remove a delivered file. Never raises: a leftover file does not make the job fail."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s was uploaded but cannot be removed: %s", path, error.strerror)


def _damaged(path: Path, why: str) -> SinkError:
    # The path is only for the log: the caller may be on another machine.
    logger.error("the stored video %s is damaged: %s", path, why)
    return SinkError(
        f"the stored video is damaged: {why}",
        field="request.job",
        hint="it is not removed; send the job under another name to make it again",
        code="s3_kept_damaged",
    )
