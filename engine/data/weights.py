"""Which weights a model needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Weights:
    """Which weights a model needs: a folder in the layout of diffusers, a sub-folder for each component."""

    model: str
    #: Name of the folder, e.g. below the volume.
    folder: str
    components: tuple[str, ...]
    #: The model's weights ship inside the package.
    packaged: bool = False
    #: A command that gets them.
    command: str = ""
    #: That one and others, each with what it brings: its size, and what to add to the config.
    commands: tuple[tuple[str, str], ...] = ()
    #: The file of audio weights that belongs to the model, or the end of its path; "": any.
    adapter: str = ""
    #: How the transformer is kept: decides which of its files is read.
    quant: str = "none"
    #: The quantised file, below the folder, where there are several.
    file: str | None = None
