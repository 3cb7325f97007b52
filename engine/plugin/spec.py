"""The hooks that a plugin may implement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from engine.components import (
        AttentionBackend,
        Diariser,
        Entrypoint,
        Guidance,
        Launcher,
        ModelSource,
        Quantiser,
        Reader,
        RegionFinder,
        Sampler,
        Sink,
        Speech,
        StepCache,
        VoiceFilter,
    )
    from engine.data import Access, Delivery, Frames, Inputs, Plan, Progress, Request, Window
    from engine.family import Family
    from engine.plugin.register import Presets, Register

hookspec = pluggy.HookspecMarker("multitalk_engine")
hookimpl = pluggy.HookimplMarker("multitalk_engine")


@hookspec
def register_sources(register: Register[ModelSource]) -> None:
    """Offer sources of weights. `register.build(config)` and `register.config(name)` give access to the others."""


@hookspec
def register_families(register: Register[Family]) -> None:
    """Offer model families: kinds of network, each with its conditions and its way to make a window."""


@hookspec
def register_readers(register: Register[Reader]) -> None:
    """Offer readers, which load weights from files to the device."""


@hookspec
def register_quants(register: Register[Quantiser]) -> None:
    """Offer quantisations, which are applied while the weights are loaded."""


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
def register_regions(register: Register[RegionFinder]) -> None:
    """Offer finders, which decide the regions of speakers that a request leaves to the engine."""


@hookspec
def register_speech(register: Register[Speech]) -> None:
    """Offer speech: how the lines of a script are spoken (docs/dialogue.md)."""


@hookspec
def register_diarisers(register: Register[Diariser]) -> None:
    """Offer diarisers: who speaks when in a recording of several people (docs/voices.md)."""


@hookspec
def register_vocals(register: Register[VoiceFilter]) -> None:
    """Offer voice filters: what the network hears of a voice with music or noise (docs/voices.md)."""


@hookspec
def register_sinks(register: Register[Sink]) -> None:
    """Offer sinks, which store finished videos."""


@hookspec
def register_launchers(register: Register[Launcher]) -> None:
    """Offer launchers, which start the workers of a batch on machines and devices (docs/batch.md)."""


@hookspec
def register_entrypoints(register: Register[Entrypoint], launchers: Register[Launcher]) -> None:
    """Offer entrypoints, through which requests arrive; each name becomes a command.

    An entrypoint that starts workers builds its launcher from `launchers`, the register of launchers.
    """


@hookspec
def register_presets(presets: Presets) -> None:
    """Add packages of YAML presets: `presets(package)`."""


@hookspec(firstresult=True)
def open_address(address: str, scheme: str, access: Access, into: Path) -> Path | None:
    """Return a local file with the content of `address`, or None to leave it to other plugins; the first file is used.

    `scheme` is "path" if the address has none. The engine has checked scheme and folders against `access`. The plugin
    must respect its limits of size and time, and stop once `access.cancel` is set (`engine.cancel` has functions that
    wait for it). Create new files in the folder `into`.
    """


@hookspec
def generation_started(request: Request, plan: Plan, inputs: Inputs) -> None:
    """Called once for each video, before its first window, with its final plan and its decoded media.

    `inputs` must not be changed. An exception ends the generation.
    """


@hookspec
def step_predicted(
    request: Request, window: Window, step: int, latents: Tensor, predicted: Tensor, time: float
) -> None:
    """Called in the middle of each denoising step, of step `step` (from 1) of `window`.

    `latents` are those at its start, float32 (channels, T, h, w) on the model's device, at `time`, 0 .. 1000;
    `predicted` are the latents without noise, as the network sees them now. Neither may be changed. An exception ends
    the generation.
    """


@hookspec
def step_finished(request: Request, progress: Progress) -> None:
    """Called after each denoising step, with window, step and remaining time. An exception ends the generation."""


@hookspec
def window_finished(request: Request, window: Window, frames: Frames) -> None:
    """Called after each window, before its frames are written.

    `window` is the plan's entry; `frames.pictures` may be changed in place (a watermark, a preview).
    """


@hookspec
def generation_finished(request: Request, delivery: Delivery) -> None:
    """Called after each finished video; `delivery` contains its address and the seconds of each stage."""
