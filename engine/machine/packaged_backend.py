"""Attention backends whose kernel comes with a package of its own."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar

from engine.errors import ConfigError, EngineError
from engine.machine.libraries import require_fitting


class PackagedBackend:
    """An attention backend on CUDA whose kernel another package brings: derive from it and name the package."""

    #: What users choose (`attention=NAME`), which is also the name by which diffusers knows the kernel.
    name: ClassVar[str]
    #: The package as pip knows it.
    package: ClassVar[str]
    #: The modules that hold its compiled files; the first is looked for to see whether it is installed.
    modules: ClassVar[tuple[str, ...]]

    def __init__(self, config: object) -> None:
        """Take the component's config, of which nothing is needed."""

    def missing(self) -> EngineError:
        """Return the error for a machine on which the package is not installed."""
        return ConfigError(
            f"attention={self.name} needs the package {self.package!r}, which is not installed",
            field="attention",
            hint=f"pip install {self.package}, or choose attention=sdpa",
        )

    def resolve(self, device: str) -> str:
        """Return the kernel's name.

        Raises ConfigError off CUDA and for a package compiled for another CUDA than torch, and what `missing` returns.
        """
        if device != "cuda":
            raise ConfigError(
                f"attention={self.name} runs on CUDA, not on {device!r}",
                field="attention",
                hint="choose attention=sdpa",
            )
        if find_spec(self.modules[0]) is None:
            raise self.missing()
        require_fitting(f"attention={self.name}", self.package, self.modules)
        return self.name
