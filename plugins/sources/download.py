"""Weights from the hub, downloaded to the volume when they are needed."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from engine import hookimpl
from engine.components import ModelSource
from engine.config import FolderConfig
from engine.data import Weights
from engine.errors import SourceError
from engine.hub.manifest import Preset, read_manifest
from engine.hub.pull import Options, is_complete, pull
from engine.plugin.register import Register

logger = logging.getLogger(__name__)


@dataclass
class DownloadConfig(FolderConfig):
    """Downloads the required weights preset to source.path, else $MODEL_PATH, as `multitalk models pull` does."""

    name: str = "download"
    path: str = "${oc.env:MODEL_PATH,/runpod-volume/models}"
    #: A weights preset of `multitalk models list`; "": the one for model and quant.
    preset: str = ""


class Download:
    """Downloads a preset; a complete download is not repeated."""

    def __init__(self, config: DownloadConfig) -> None:
        self.config = config
        self.root = Path(config.path).expanduser()

    def locate(self, weights: Weights) -> Path | None:
        """Return the folder of a complete download, else None."""
        preset = self._preset(weights)
        if preset is None:
            return None
        folder = self.root / preset.folder
        return folder if is_complete(preset, folder) else None

    def fetch(self, weights: Weights) -> Path | None:
        """Return the folder with all files, downloaded if necessary; None for a model that is not published.

        Raises SourceError.
        """
        preset = self._preset(weights)
        if preset is None:
            return None
        if preset.folder != weights.folder:
            raise SourceError(
                f"the preset {preset.name} belongs in {preset.folder}, and model.folder is {weights.folder}",
                field="source.preset",
                hint=preset.use,
            )
        return pull(preset, self.root, Options(out=sys.stderr, say=logger.info))

    def looked(self, weights: Weights) -> str:
        """Return the preset and its folder."""
        preset = self._preset(weights)
        if preset is None:
            return f"the hub, where this model with quant={weights.quant} is not published"
        return f"a complete download of {preset.name} in {self.root / preset.folder}"

    def _preset(self, weights: Weights) -> Preset | None:
        return read_manifest().chosen(self.config.preset, weights.model, weights.quant)


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer downloading as a source."""
    register(Download, DownloadConfig)
