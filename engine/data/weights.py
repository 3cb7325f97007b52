"""The weights that a model needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Weights:
    """The weights that a model needs: a folder in the layout of diffusers, with a sub-folder per component."""

    model: str
    #: Name of the folder, e.g. on the volume.
    folder: str
    components: tuple[str, ...]
    #: Whether the weights ship inside the package.
    packaged: bool = False
    #: A command that downloads them.
    command: str = ""
    #: This command and others, each with a note: the size of the download, and the overrides to add.
    commands: tuple[tuple[str, str], ...] = ()
    #: File of the model's audio weights, or the end of its path; "": any.
    adapter: str = ""
    #: Quantisation of the transformer; it decides which file is read.
    quant: str = "none"
    #: The quantised file, in the folder, if there are several.
    file: str | None = None
    #: The family's own way to find the parts (`engine.config.FamilyConfig.find_parts`); None: the engine's.
    find: Callable[..., tuple[Mapping[str, Any], tuple[str, ...]]] | None = None
