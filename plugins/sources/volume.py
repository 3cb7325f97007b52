"""Weights on a mounted volume or in any local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import hookimpl
from engine.components import ModelSource
from engine.config import FolderConfig
from engine.data import Weights
from engine.loading.layout import whole_folder
from engine.plugin.register import Register


@dataclass
class VolumeConfig(FolderConfig):
    """A folder with one sub-folder per model: source.path, else $MODEL_PATH."""

    name: str = "volume"
    path: str = "${oc.env:MODEL_PATH,/runpod-volume/models}"


class Volume:
    """Finds weights in `<path>/<folder of the model>`, in any layout that docs/weights.md lists."""

    def __init__(self, config: VolumeConfig) -> None:
        self.root = Path(config.path).expanduser()

    def locate(self, weights: Weights) -> Path | None:
        """Return the model's folder, or None if it does not exist. Raises SourceError if it is incomplete."""
        return whole_folder(self.root / weights.folder, weights)

    def looked(self, weights: Weights) -> str:
        """Return the folder."""
        return f"folder {self.root / weights.folder}"


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer a folder as a source."""
    register(Volume, VolumeConfig)
