"""Loaded weights of LongCat-Video-Avatar, and how they make one window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from engine.cancel import check
from engine.components import CancelToken, evaluations_of
from engine.data import DecodeOptions, EncodeOptions, Inputs, Plan, Window
from engine.family import Carried, Denoising, Finished
from engine.loading.model import Model
from engine.network.audio import audio_windows
from engine.planning.memory import FRAGMENTED
from engine.stages.decode import decode
from engine.stages.denoise import draw_noise
from engine.stages.encode import Conditioning, Listened, encode_texts, share, to_pixels
from plugins.families.longcat.operations import forward_bytes
from plugins.families.longcat.settings import LongCatConfig
from plugins.families.longcat.transformer import AvatarConditions
from plugins.families.longcat.versions import version
from plugins.families.longcat.voices import encode_tracks, silence
from plugins.families.longcat.walk import Carry, Start, denoise_window, finish, hand_over, start_first, start_next

if TYPE_CHECKING:
    from torch import Tensor

#: Names of what a window hands to the next; see `walk.Carry`.
REFERENCE, LATENTS, PIXELS = "reference", "latents", "pixels"
#: Seed of the faint noise that 1.0 adds to voices: the same voice has the same features in every video.
_VOICE_SEED = 0


@dataclass(frozen=True)
class Begun:
    """The conditions of a window."""

    #: Its given frames; the noise is zero until `LongCatModel.denoise`.
    start: Start
    #: By guidance branch.
    branches: Mapping[str, AvatarConditions]


@dataclass
class LongCatModel(Model):
    """See `engine.family.FamilyModel`."""

    settings: LongCatConfig = field(default_factory=LongCatConfig)

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
        texts = encode_texts(self, *prompts, options.branches)
        # Seeded here, and not by the request: it is part of how this version hears.
        generator = torch.Generator().manual_seed(_VOICE_SEED)
        voices = encode_tracks(version(self.settings.version), self.audio, inputs.voices, generator, cancel=cancel)
        return share(inputs, plan, texts, voices)

    @torch.no_grad()
    def begin(
        self,
        inputs: Inputs,
        window: Window,
        prepared: Listened,
        options: EncodeOptions,
        carried: Carried | None,
        *,
        cancel: CancelToken | None = None,
    ) -> Begun:
        """See `engine.family.FamilyModel`."""
        known, given = version(self.settings.version), prepared.windows[window.index]
        check(cancel, "encode")
        picture = self._picture(inputs, given, cancel)
        frames = 1 + (window.frames - 1) // self.codec.temporal
        zeros = picture.new_zeros(picture.shape[0], frames, *picture.shape[2:])
        if carried is None:
            start = start_first(zeros, picture)
        else:
            carry = _carry(carried, self.device)
            if given.number != prepared.windows[window.index - 1].number:
                # The first latent frame of a video is its picture's; from here on it is another picture's.
                carry = replace(carry, reference=picture)
            check(cancel, "encode")
            start = start_next(
                zeros,
                carry,
                self._encode(carry.pixels, cancel),
                keeps_latents=known.keeps_latents,
                position=self.settings.reference_position,
                hidden_range=self.settings.hidden_range,
            )
        heard = audio_windows(given.voices, window.start, window.frames, options.fps, known.feature_rate)
        heard = heard.to(self.device)
        masks = torch.tensor(inputs.masks) if len(heard) > 1 else None
        shape = (start.layout.total, int(zeros.shape[2]), int(zeros.shape[3]))
        branches = {}
        with self.use("transformer"):
            for branch in options.branches:
                check(cancel, "encode")
                text = given.text.prompt if branch in ("cond", "drop_audio") else given.text.negative
                if text is None:
                    raise RuntimeError(f"{branch} needs the features of the negative prompt")
                branches[branch] = self.transformer.embed_conditions(
                    shape,
                    start.layout,
                    text.to(self.device),
                    silence(heard) if branch in ("drop_audio", "uncond") else heard,
                    masks,
                )
        return Begun(start, branches)

    def shown(
        self, begun: Begun, window: Window, prepared: Listened, inputs: Inputs, carried: Carried | None
    ) -> tuple[Tensor, Tensor]:
        """See `engine.family.FamilyModel`."""
        picture = (inputs.image, *inputs.images)[prepared.windows[window.index].number]
        return begun.start.given[:, 0], to_pixels(picture)

    def noise(self, begun: Begun, generator: torch.Generator) -> Tensor:
        """See `engine.family.FamilyModel`; drawn for given frames too, as in the public code."""
        layout, noise = begun.start.layout, begun.start.noise
        return draw_noise((noise.shape[0], layout.total - int(layout.reference), *noise.shape[2:]), generator)

    def denoise(self, begun: Begun, noise: Tensor, steps: Denoising) -> Tensor:
        """See `engine.family.FamilyModel`: the latents of the whole window, given frames included."""
        layout = begun.start.layout
        start = replace(begun.start, noise=noise[:, noise.shape[1] - layout.noisy :])
        schedule = steps.sampler.schedule()
        with self.use("transformer"):
            denoised = denoise_window(
                self.transformer,
                start,
                begun.branches,
                schedule,
                steps.guidance,
                evaluations=evaluations_of(steps.sampler, len(schedule.timesteps) - 1),
                cached=self.settings.keep_keys,
                batched=steps.batched(lambda: self._batch_bytes(begun)),
                fresh=lambda: draw_noise(tuple(start.noise.shape), steps.generator).to(self.device),
                on_step=steps.on_step,
                look=steps.look,
                tally=steps.tally,
                cancel=steps.cancel,
            )
        return finish(start, denoised)

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
        before = None if carried is None else _carry(carried, "cpu")
        colors = prepared.windows[window.index].colors
        history = None if before is None else before.pixels
        frames, last = decode(self, latents, window, colors, options, history, cancel=cancel)
        index = window.index
        if before is not None and prepared.windows[index].number != prepared.windows[index - 1].number:
            before = replace(before, reference=prepared.windows[index].picture.once("picture", _gone).cpu())
        carry = hand_over(latents.float().cpu(), last, options.motion_frames, before)
        return Finished(frames, {REFERENCE: carry.reference, LATENTS: carry.latents, PIXELS: carry.pixels})

    def _picture(self, inputs: Inputs, given: Conditioning, cancel: CancelToken | None) -> Tensor:
        """Return the latents of a window's picture, (16, 1, h, w), encoded once for all windows that show it."""
        given.picture.turn(given.number)
        pixels = to_pixels((inputs.image, *inputs.images)[given.number])
        return given.picture.once("picture", lambda: self._encode(pixels[:, None], cancel))

    def _encode(self, pixels: Tensor, cancel: CancelToken | None) -> Tensor:
        with self.use("vae"):
            return self.codec.encode(pixels.to(self.device, torch.float32), cancel=cancel).to(self.device)

    def _batch_bytes(self, begun: Begun) -> int:
        """Return the bytes of temporary tensors of a forward of all passes, with the allocator's loss."""
        one = next(iter(begun.branches.values()))
        _, rows, columns = one.latent_shape
        needed = forward_bytes(
            self.transformer.config,
            one.layout,
            rows,
            columns,
            value=one.context.element_size(),
            voices=1 if one.speakers is None else 2,
            cached=self.settings.keep_keys,
            batch=len(begun.branches),
            adapted=True,
            device=self.device,
        )
        return int(needed * (1 + FRAGMENTED))


def _carry(carried: Carried, device: str) -> Carry:
    return Carry(*(carried[name].to(device) for name in (REFERENCE, LATENTS, PIXELS)))


def _gone() -> Tensor:
    raise RuntimeError("the picture of a window was not encoded before the window")
