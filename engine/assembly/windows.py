"""A window -> its frames: encode, denoise and decode, with what all windows of a request share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.assembly.dubbing import Dubbing
from engine.assembly.followers import ProcessGroup
from engine.assembly.options import StageOptions
from engine.assembly.retakes import Retakes
from engine.assembly.sampling import Sampling
from engine.config import Config
from engine.data import Inputs, Window
from engine.loading.model import Model
from engine.runtime.progress import Meter
from engine.stages.decode import Decoded, decode
from engine.stages.encode import Conditioning, encode, to_pixels
from engine.stages.previews import Previews

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class WindowMaker:
    """Makes the windows of one request, in order."""

    model: Model
    inputs: Inputs
    #: One entry per window of the plan.
    conditioning: Sequence[Conditioning]
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

    def make(self, window: Window, history: Tensor | None) -> Decoded:
        """Make a window's new frames, and the history for the next window, from that of the window before.

        A window outside the report's limits is denoised and decoded again as often as the config allows. Raises
        Cancelled, and EngineError (`broken_window`) for a window that is not a picture.
        """
        number, meter, options = window.index + 1, self.meter, self.options
        if not window.motion:
            # The first window, or the first one of another scene.
            history = None
        with meter.stage("encode", window=number):
            inputs, given = self.dubbing.begin(window, self.inputs, self.conditioning[window.index])
            conditions = encode(self.model, inputs, window, given, options.encode, history, cancel=meter)
            conditions = self.dubbing.hold(self.model, conditions, window)
        look = None
        if self.previews is not None:
            # In this style every window is conditioned on the picture.
            recent = None if options.encode.style == "infinitetalk" else history
            pictures = (inputs.image, *inputs.images)
            shown = to_pixels(pictures[given.number]) if recent is None else recent[:, 0]
            self.previews.begin(window, conditions, shown)
            look = self.previews.step

        def attempt(generator: torch.Generator) -> Decoded:
            with meter.stage("denoise", window=number):
                latents = self.group.denoise(
                    self.model,
                    conditions,
                    self.sampling,
                    generator,
                    self.config,
                    self.on_step,
                    cancel=meter,
                    look=look,
                )
            with meter.stage("decode", window=number):
                made = decode(self.model, latents, window, given.colors, options.decode, history, cancel=meter)
                return self.dubbing.compose(made, window)

        made = self.retakes.make(window, attempt)
        if self.previews is not None:
            self.previews.done(made.frames)
        return made
