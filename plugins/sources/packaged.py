"""Weights that are part of the package."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from engine import hookimpl
from engine.components import ModelSource
from engine.config import ComponentConfig
from engine.data import Weights
from engine.errors import SourceError
from engine.loading.layout import missing_weights
from engine.plugin.register import Register


@dataclass
class PackagedConfig(ComponentConfig):
    """The weights that are part of the package: those of model=tiny."""

    name: str = "packaged"


class Packaged:
    """Finds the weights of a model whose preset has `packaged: true`."""

    def __init__(self, config: PackagedConfig, root: Path | None = None) -> None:
        self.root = root or Path(str(files("engine"))) / "weights"

    def locate(self, weights: Weights) -> Path | None:
        """Return the folder in the package; None for a model that is not packaged. Raises SourceError."""
        if not weights.packaged:
            return None
        folder = self.root / weights.folder
        missing = missing_weights(folder, replace(weights, quant="none"))
        if missing:
            raise SourceError(
                f"weights of {weights.model!r} are missing from the package, in {folder}: {', '.join(missing)}",
                field="source",
                hint="install multitalk-engine again",
            )
        if missing_weights(folder, weights):
            # The usual cause: a recipe for the published models.
            raise SourceError(
                f"the package has the model {weights.model!r} only without quantisation, and quant={weights.quant} "
                "reads a quantised file",
                field="quant",
                hint="leave out the recipe that sets it (recipe=none, MULTITALK_RECIPE=none), or choose quant=none",
            )
        return folder

    def looked(self, weights: Weights) -> str:
        """Return the folder in the package."""
        if weights.packaged:
            return f"the package ({self.root / weights.folder})"
        return "the package, which does not contain this model"


@hookimpl
def register_sources(register: Register[ModelSource]) -> None:
    """Offer the package as a source."""
    register(Packaged, PackagedConfig)
