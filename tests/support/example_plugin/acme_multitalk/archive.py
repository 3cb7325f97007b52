"""A sink whose files are called by the hash of what is in them, and the presets of this package."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine import hookimpl
from engine.components import Sink
from engine.config import SinkConfig
from engine.data import Artifact, Kept
from engine.errors import SinkError
from engine.plugin.register import Presets, Register


@dataclass
class ArchiveConfig(SinkConfig):
    """A folder in which a video is named by its SHA-256."""

    name: str = "archive"
    folder: str = "archive"


class Archive:
    """Keeps each video once."""

    def __init__(self, config: ArchiveConfig) -> None:
        self.folder = Path(config.folder).absolute()

    def check(self, filename: str | None) -> None:
        """Refuse names: the archive gives its own."""
        if filename is not None:
            raise SinkError("an archive names its videos itself", field="request.filename", hint="leave it out")

    def put(self, artifact: Artifact) -> Kept:
        """Move the video into the archive."""
        content = artifact.path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        target = self.folder / f"{digest}.mp4"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.move(artifact.path, target)
        except OSError as error:
            raise SinkError(f"cannot write {target}: {error.strerror}", field="sink.folder") from error
        return Kept(str(target), None, digest, len(content))


@hookimpl
def register_sinks(register: Register[Sink]) -> None:
    """Offer the archive."""
    register(Archive, ArchiveConfig)


@hookimpl
def register_presets(presets: Presets) -> None:
    """Offer the YAML files of this package."""
    presets("acme_multitalk.conf")
