"""Weights on a mounted volume or in any local folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import hookimpl
from engine.components import ModelSource
from engine.config import FolderConfig
from engine.data import Weights
from engine.errors import MissingWeights
from engine.loading.layout import describe_unread, find_parts, other_quant
from engine.plugin.register import Register


@dataclass
class VolumeConfig(FolderConfig):
    """A folder with a sub-folder for each model: source.path, else $MODEL_PATH."""

    name: str = "volume"
    path: str = "${oc.env:MODEL_PATH,/runpod-volume/models}"


class Volume:
    """Finds weights in `<path>/<folder of the model>`, in any layout that `find_parts` tells."""

    def __init__(self, config: VolumeConfig) -> None:
        self.root = Path(config.path).expanduser()

    def locate(self, weights: Weights) -> Path | None:
        """Return the model's folder, None where there is none. Raises SourceError where it is incomplete."""
        folder = self.root / weights.folder
        if not folder.is_dir():
            return None
        _, missing = find_parts(folder, weights)
        if missing:
            brief = f"weights of {weights.model!r} in {folder} are incomplete"
            instead = other_quant(folder, weights)
            others = describe_unread(folder, weights)
            raise MissingWeights(
                brief,
                missing=missing,
                commands=weights.commands,
                instead=instead,
                hint="docs/weights.md lists the formats that are read" if others else "copy them there",
                seen=others,
            )
        return folder

    def looked(self, weights: Weights) -> str:
        """Say where."""
        return f"folder {self.root / weights.folder}"


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer a folder as a source."""
    register(Volume, VolumeConfig)
