"""Attention backends whose kernel diffusers knows: those of the table, and those of a plugin's own package."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Protocol

from engine.data.attention import AttentionChoice, AttentionSite
from engine.errors import ConfigError, EngineError
from engine.machine.kernels import KERNELS, Kernel, find_kernel, installed_version, refusal
from engine.machine.libraries import require_fitting


class Named(Protocol):
    """A config with the name of a kernel of the table."""

    @property
    def name(self) -> str:
        """The name that users choose."""
        ...


class KernelBackend:
    """A kernel of the table (`engine.machine.kernels`): the one that its config names."""

    def __init__(self, config: Named) -> None:
        self.kernel = find_kernel(config.name)

    def missing(self) -> EngineError | None:
        """Return another error than the usual one for a package that is not installed; None: the usual one."""
        return None

    def resolve(self, device: str) -> str:
        """Return the kernel's name in diffusers, with the device's usual dtype. Raises as `choose`."""
        return self.choose(AttentionSite(device, "bfloat16" if device == "cuda" else "float32")).kernel

    def choose(self, site: AttentionSite) -> AttentionChoice:
        """Return the kernel.

        Raises ConfigError if device, card, dtype, package or the CUDA of its compiled files do not suit, and what
        `missing` returns.
        """
        kernel = self.kernel
        problem: EngineError | None = refusal(kernel, site, lambda *_: "")
        if problem is None and (problem := refusal(kernel, site, installed_version)) is not None:
            absent = installed_version(kernel.package, kernel.modules[0]) is None
            problem = (self.missing() if absent else None) or problem
        if problem is not None:
            raise problem
        if kernel.package and not kernel.hub:
            require_fitting(f"attention={kernel.name}", kernel.package, kernel.modules)
        return AttentionChoice(kernel.dispatch, note=kernel.note)


class PackagedBackend(KernelBackend):
    """An attention backend on CUDA whose kernel another package brings: derive from it and name the package."""

    #: What users choose (`attention=NAME`), which is also the name by which diffusers knows the kernel.
    name: ClassVar[str]
    #: The package as pip knows it.
    package: ClassVar[str]
    #: The modules that hold its compiled files; the first is looked for to see whether it is installed.
    modules: ClassVar[tuple[str, ...]]

    def __init__(self, config: object) -> None:
        """Take the component's config, of which nothing is needed."""
        known = next((kernel for kernel in KERNELS if kernel.name == self.name), None)
        own = Kernel(self.name, self.name, self.package, self.modules, capability=(0, 0))
        self.kernel = known or replace(own, dtypes=("float32", "bfloat16", "float16"), multiple=1, largest=2**20)

    def missing(self) -> EngineError:
        """Return the error for a machine on which the package is not installed."""
        return ConfigError(
            f"attention={self.name} needs the package {self.package!r}, which is not installed",
            field="attention",
            hint=f"pip install {self.package}, or choose attention=sdpa",
        )
