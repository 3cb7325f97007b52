"""Inputs and a window -> Conditions: picture, voices and history, encoded and embedded for each guidance branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.cancel import check
from engine.components import CancelToken
from engine.data import Conditions, EncodeOptions, Inputs, Motion, Window
from engine.errors import ConfigError
from engine.network.audio import audio_windows
from engine.stages.encode import Conditioning, PictureCache, textless, to_pixels

if TYPE_CHECKING:
    from engine.loading.model import Model

STYLES = ("multitalk", "infinitetalk")


@torch.no_grad()
def encode(
    model: Model,
    inputs: Inputs,
    window: Window,
    conditioning: Conditioning,
    options: EncodeOptions,
    history: Tensor | None,
    *,
    cancel: CancelToken | None = None,
) -> Conditions:
    """Encode picture, history and voices of one window and embed them for each guidance branch.

    `history` contains the last frames of the window before, float32 (3, M, H, W) in -1 .. 1, M = 4n + 1; None in the
    first window. Raises Cancelled between parts once `cancel` is set, and ConfigError for an unknown style.
    """
    if options.style not in STYLES:
        raise ConfigError(
            f"no continuation named {options.style!r}", field="continuation.style", hint=" or ".join(STYLES)
        )
    picture = to_pixels((inputs.image, *inputs.images)[conditioning.number]).to(model.device)
    recent = picture[:, None] if history is None else history.to(model.device, torch.float32)
    clean = options.style == "infinitetalk"
    reference = picture[:, None] if clean else recent
    # If each window is conditioned on other frames, nothing is cached.
    cache = conditioning.picture if clean else PictureCache()
    cache.turn(conditioning.number)

    def latents_of(pixels: Tensor) -> Tensor:
        with model.use("vae"):
            return model.codec.encode(pixels, cancel=cancel).to(model.device)

    def features_of(pixels: Tensor) -> Tensor:
        with model.use("image_encoder"):
            return model.image.encode(pixels).to(model.device)

    check(cancel, "encode")
    latents = cache.once(f"latents of {window.frames}", lambda: latents_of(_padded(reference, window.frames)))
    if clean:
        # Encoded separately: the first of the latents above differ slightly, because other frames follow.
        motion: Motion | None = Motion(latents_of(recent), clean=True)
    elif history is None:
        motion = None
    else:
        length = 1 + (reference.shape[1] - 1) // model.codec.temporal
        motion = Motion(latents[:, :length].clone(), clean=False)
    mask = frame_mask(reference.shape[1], window.frames, model.codec.temporal).to(latents)
    mask = mask[:, :, None, None].expand(-1, -1, *latents.shape[2:])

    check(cancel, "encode")
    image = cache.once("features", lambda: features_of(reference[:, -1]))

    voices = conditioning.voices
    audio = audio_windows(voices, window.start, window.frames, options.fps, options.native_fps).to(model.device)
    masks = torch.tensor(inputs.masks)
    shape = (int(latents.shape[1]), int(latents.shape[2]), int(latents.shape[3]))
    embedded = {}
    with model.use("transformer"):
        for branch in options.branches:
            check(cancel, "encode")
            text = conditioning.text.negative if textless((branch,)) else conditioning.text.prompt
            if text is None:
                raise RuntimeError(f"{branch} needs the features of the negative prompt")
            silent = branch in ("drop_audio", "uncond")
            embedded[branch] = model.transformer.embed_conditions(
                shape,
                encoder_hidden_states=text.to(model.device),
                encoder_hidden_states_image=image,
                audio_windows=None if silent else audio,
                speaker_masks=None if silent else masks,
            )
    return Conditions(latents=torch.cat([mask, latents]), branches=embedded, motion=motion)


def frame_mask(first: int, frames: int, temporal: int) -> Tensor:
    """Return a mask of the first `first` of `frames` frames, by latent frame: float32 (temporal, T), 0 or 1.

    The channel is the index within the frames of a latent frame; the first latent frame has only one.
    """
    pixels = torch.zeros(frames)
    pixels[:first] = 1
    return torch.cat([pixels[:1].repeat(temporal), pixels[1:]]).view(-1, temporal).T


def _padded(pixels: Tensor, frames: int) -> Tensor:
    # Followed by mid grey, as in Wan's image-to-video training.
    grey = pixels.new_zeros(pixels.shape[0], frames - pixels.shape[1], *pixels.shape[2:])
    return torch.cat([pixels, grey], dim=1)
