"""One repository with a complete model, as RunPod caches it for an endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine import hookimpl
from engine.components import ModelSource
from engine.config import ComponentConfig
from engine.data import Weights
from engine.errors import SourceError
from engine.hub.cached import snapshot
from engine.plugin.register import Register


@dataclass
class CachedConfig(ComponentConfig):
    """A repository that RunPod has cached (its "Model" field): source.repository, else $MULTITALK_CACHED_MODEL."""

    name: str = "cached"
    #: Folder of RunPod's cache, in the hub cache's layout.
    path: str = "/runpod-volume/huggingface-cache/hub"
    #: OWNER/NAME of a repository that contains a complete model folder (docs/models.md); "": none.
    repository: str = "${oc.env:MULTITALK_CACHED_MODEL,''}"
    #: Branch, tag or commit of the repository.
    revision: str = "main"


class Cached:
    """Finds the snapshot of one repository in the layout of the hub's cache."""

    def __init__(self, config: CachedConfig) -> None:
        self.config = config

    def locate(self, weights: Weights) -> Path | None:
        """Return the snapshot; None if none is configured or cached, or for a packaged model. Raises SourceError."""
        if not self.config.repository or weights.packaged:
            return None
        folder = snapshot(Path(self.config.path).expanduser(), self.config.repository, self.config.revision)
        if folder is not None and not any(path.is_file() for path in folder.rglob("*")):
            raise SourceError(
                f"the cached model {self.config.repository} is empty: {folder}",
                field="source",
                hint="restart the worker",
            )
        return folder

    def looked(self, weights: Weights) -> str:
        """Return the repository and the folder of the cache."""
        return f"{self.config.repository or 'no repository'} in {self.config.path}"


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer RunPod's cached model as a source."""
    register(Cached, CachedConfig)
