"""The hooks that a plugin may implement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from engine.components import (
        AttentionBackend,
        Entrypoint,
        Guidance,
        Launcher,
        ModelSource,
        Reader,
        Sampler,
        Sink,
        StepCache,
    )
    from engine.data import Access, Delivery, Frames, Progress, Request, Window
    from engine.plugin.register import Presets, Register

hookspec = pluggy.HookspecMarker("multitalk_engine")
hookimpl = pluggy.HookimplMarker("multitalk_engine")


@hookspec
def register_sources(register: Register[ModelSource]) -> None:
    """Offer places to take weights from."""


@hookspec
def register_readers(register: Register[Reader]) -> None:
    """Offer ways to bring weights from their files to the device."""


@hookspec
def register_attention(register: Register[AttentionBackend]) -> None:
    """Offer attention backends."""


@hookspec
def register_samplers(register: Register[Sampler]) -> None:
    """Offer samplers."""


@hookspec
def register_guidance(register: Register[Guidance]) -> None:
    """Offer kinds of guidance."""


@hookspec
def register_caches(register: Register[StepCache]) -> None:
    """Offer step caches."""


@hookspec
def register_sinks(register: Register[Sink]) -> None:
    """Offer places to keep finished videos."""


@hookspec
def register_launchers(register: Register[Launcher]) -> None:
    """Offer machines and devices for the workers of a batch."""


@hookspec
def register_entrypoints(register: Register[Entrypoint], launchers: Register[Launcher]) -> None:
    """Offer ways in which requests arrive; one that starts workers builds its launcher from `launchers`."""


@hookspec
def register_presets(presets: Presets) -> None:
    """Add a package folder of YAML presets to the config search path."""


@hookspec(firstresult=True)
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Bring what lies at `address` to a local file (a new one belongs below `into`), or return None to pass.

    The core has checked scheme and folders against `access`; the plugin keeps to its size and time limits.
    """


@hookspec
def step_finished(request: Request, progress: Progress) -> None:
    """Called after each denoising step. An exception ends the generation."""


@hookspec
def window_finished(request: Request, window: Window, frames: Frames) -> None:
    """Called after each window with its new frames, before they are written; they may be changed in place."""


@hookspec
def generation_finished(request: Request, delivery: Delivery) -> None:
    """Called after each finished video."""
