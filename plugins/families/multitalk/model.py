"""Loaded weights of MultiTalk's network, and how they make one window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine.components import CancelToken
from engine.data import Conditions, DecodeOptions, EncodeOptions, Held, Inputs, Plan, Window
from engine.family import Carried, Denoising, Finished
from engine.loading.model import Model, load_model
from engine.media.color import color_statistics
from engine.planning.activations import forward_bytes
from engine.planning.memory import FRAGMENTED
from engine.stages.compose import compose
from engine.stages.decode import Decoded, decode
from engine.stages.denoise import denoise, draw_noise
from engine.stages.encode import Listened, PictureCache, encode_prompt_and_voices, to_pixels
from plugins.families.multitalk.conditions import encode
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

#: Mask channels before the latents in a window's conditions.
_MASKS = 4
#: What a window hands to the next: its last frames, float32 (3, M, H, W) in -1 .. 1.
_PIXELS = "history"


class MultiTalkModel(Model):
    """See `engine.family.SharingModel` and `DubbingModel`."""

    def prepare(
        self,
        inputs: Inputs,
        prompts: tuple[Sequence[str], str],
        plan: Plan,
        options: EncodeOptions,
        *,
        cancel: CancelToken | None = None,
    ) -> Listened:
        """See `engine.family.FamilyModel`."""
        return encode_prompt_and_voices(self, inputs, prompts, plan, options, cancel=cancel)

    def begin(
        self,
        inputs: Inputs,
        window: Window,
        prepared: Listened,
        options: EncodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Conditions:
        """See `engine.family.FamilyModel`."""
        history = None if carried is None else carried[_PIXELS]
        return encode(self, inputs, window, prepared.windows[window.index], options, history, cancel=cancel)

    def shown(
        self, begun: Conditions, window: Window, prepared: Listened, inputs: Inputs, carried: Carried | None
    ) -> tuple[Tensor, Tensor]:
        """See `engine.family.FamilyModel`."""
        if carried is not None and begun.motion is not None and not begun.motion.clean:
            # In this style a window is conditioned on the frames before it.
            return begun.latents[_MASKS:, 0], carried[_PIXELS][:, 0]
        picture = (inputs.image, *inputs.images)[prepared.windows[window.index].number]
        return begun.latents[_MASKS:, 0], to_pixels(picture)

    def noise(self, begun: Conditions, generator: torch.Generator) -> Tensor:
        """See `engine.family.FamilyModel`."""
        return draw_noise((self.codec.channels, *begun.latents.shape[1:]), generator)

    def denoise(self, begun: Conditions, noise: Tensor, steps: Denoising) -> Tensor:
        """See `engine.family.FamilyModel`."""
        passes = len(steps.guidance.branches)
        with self.use("transformer"):
            return denoise(
                self.transformer,
                begun,
                noise,
                sampler=steps.sampler,
                guidance=steps.guidance,
                cache=steps.cache,
                generator=steps.generator,
                on_step=steps.on_step,
                look=steps.look,
                cancel=steps.cancel,
                tally=steps.tally,
                shared=steps.shared,
                batched=steps.batched(lambda: batch_bytes(self, begun, passes)),
            )

    def finish(
        self,
        latents: Tensor,
        window: Window,
        prepared: Listened,
        options: DecodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Finished:
        """See `engine.family.FamilyModel`."""
        history = None if carried is None else carried[_PIXELS]
        colors = prepared.windows[window.index].colors
        frames, last = decode(self, latents, window, colors, options, history, cancel=cancel)
        return Finished(frames, {_PIXELS: last})

    def look_at(self, prepared: Listened, window: Window, picture: npt.NDArray[np.uint8]) -> Listened:
        """See `engine.family.DubbingModel`."""
        given = prepared.windows[window.index]
        own = replace(given, colors=color_statistics(to_pixels(picture)), picture=PictureCache(), number=0)
        windows = list(prepared.windows)
        windows[window.index] = own
        return Listened(windows)

    def hold(
        self, begun: Conditions, frames: npt.NDArray[np.uint8], inside: npt.NDArray[np.float32], until: float
    ) -> Conditions:
        """See `engine.family.DubbingModel`."""
        pixels = torch.stack([to_pixels(frame) for frame in frames], dim=1)
        with self.use("vae"):
            latents = self.codec.encode(pixels.to(self.device)).float()
        return replace(begun, held=Held(latents, torch.from_numpy(inside), until))

    def compose(
        self, made: Finished, source: npt.NDArray[np.uint8], mask: npt.NDArray[np.float32], begin: int
    ) -> Finished:
        """See `engine.family.DubbingModel`."""
        frames, history = compose(Decoded(made.frames, made.carried[_PIXELS]), source, mask, begin)
        return Finished(frames, {_PIXELS: history})

    def part_of(self, begun: Conditions, group: Any, place: int, size: int) -> Conditions:
        """See `engine.family.SharingModel`."""
        branches = {name: branch.split(group, place, size) for name, branch in begun.branches.items()}
        return replace(begun, branches=branches)


def load_multitalk(folder: Path, **options: Any) -> MultiTalkModel:
    """Load the weights in `folder`; `options` are those of `engine.loading.model.load_model`."""
    return load_model(folder, MultiTalkTransformer3DModel, MultiTalkModel, **options)


def batch_bytes(model: Model, conditions: Conditions, passes: int) -> int:
    """Return the bytes of temporary tensors of a forward of `passes` samples, with the allocator's loss."""
    config: Any = model.transformer.config
    branches = list(conditions.branches.values())
    speakers = max(1 if one.speakers is None else len(one.speakers.sums) - 1 for one in branches)
    _, frames, rows, columns = conditions.latents.shape
    value = max(one.context.element_size() for one in branches)
    one = forward_bytes(config, (frames, rows, columns), value=value, speakers=speakers, adapted=True)
    return int(one * passes * (1 + FRAGMENTED))
