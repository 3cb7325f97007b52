"""A window -> its frames: encode, denoise and decode, with what all windows of a request share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.assembly.dubbing import Dubbing
from engine.assembly.followers import ProcessGroup
from engine.assembly.options import StageOptions
from engine.assembly.retakes import Retakes
from engine.assembly.sampling import Sampling
from engine.config import Config
from engine.data import Inputs, Window
from engine.family import Carried, FamilyModel, Finished, Prepared
from engine.runtime.progress import Meter
from engine.stages.previews import Previews

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WindowMaker:
    """Makes the windows of one request, in order."""

    model: FamilyModel
    inputs: Inputs
    #: What all windows share.
    prepared: Prepared
    options: StageOptions
    sampling: Sampling
    #: All noise of the request comes from it, so its state decides the next window.
    generator: torch.Generator
    config: Config
    group: ProcessGroup
    meter: Meter
    #: Called after each step with its number, from 1, and the number of steps.
    on_step: Callable[[int, int], None]
    #: Judges each window, and has it made again.
    retakes: Retakes
    #: The source video, if there is one.
    dubbing: Dubbing
    #: None: nobody wants to see small pictures.
    previews: Previews | None = None

    def make(self, window: Window, carried: Carried | None) -> Finished:
        """Make a window's new frames, and what the next window gets, from what the window before handed over.

        A window outside the report's limits is denoised and decoded again as often as the config allows. Raises
        Cancelled, and EngineError (`broken_window`) for a window that is not a picture.
        """
        number, meter, options, model = window.index + 1, self.meter, self.options, self.model
        if not window.motion:
            # The first window, or the first one of another scene.
            carried = None
        with meter.stage("encode", window=number):
            inputs, prepared = self.dubbing.begin(model, window, self.inputs, self.prepared)
            begun = model.begin(inputs, window, prepared, options.encode, carried, cancel=meter)
            begun = self.dubbing.hold(model, begun)
        look = None
        if self.previews is not None:
            self.previews.begin(window, model.shown(begun, window, prepared, inputs, carried))
            look = self.previews.step

        def attempt(generator: torch.Generator) -> Finished:
            with meter.stage("denoise", window=number):
                latents = self.group.denoise(
                    model,
                    begun,
                    self.sampling,
                    generator,
                    self.config,
                    self.on_step,
                    cancel=meter,
                    look=look,
                    continues=window.motion > 0,
                )
            with meter.stage("decode", window=number):
                made = model.finish(latents, window, prepared, options.decode, carried, cancel=meter)
                return self.dubbing.compose(model, made, window)

        made = self.retakes.make(window, attempt)
        if self.previews is not None:
            self.previews.done(made.frames)
        return made
