"""Inputs and a window -> Conditions: everything the network is steered by, embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.components import CancelToken
from engine.data import Conditions, Inputs, Motion, Window
from engine.errors import Cancelled, ConfigError
from engine.multitalk.audio import audio_frames, audio_windows

if TYPE_CHECKING:
    from engine.loading.model import Model

STYLES = ("multitalk", "infinitetalk")


@dataclass(frozen=True)
class Texts:
    """Features of the prompts, each (1, tokens, text_dim); the negative one only where a branch needs it."""

    prompt: Tensor
    negative: Tensor | None


class Shown:
    """What the network is shown of a request's picture: made once, though several windows are shown it.

    A few MB, on the device. Latents are those of the picture before grey, and so belong to a number of frames.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[str, Tensor] = {}

    def once(self, what: str, make: Callable[[], Tensor]) -> Tensor:
        """Return what was made under a name, or make it."""
        if what not in self._known:
            self._known[what] = make()
        return self._known[what]


@torch.no_grad()
def encode_text(model: Model, prompt: str, negative: str, branches: Sequence[str]) -> Texts:
    """Encode the prompts, once a request; the negative one only if one of `branches` drops the text."""
    with model.use("text_encoder"):
        return Texts(
            prompt=model.text.encode(prompt).to(model.device),
            negative=model.text.encode(negative).to(model.device) if _textless(branches) else None,
        )


@torch.no_grad()
def encode_voices(
    model: Model, voices: Sequence[npt.NDArray[np.float32]], native_fps: float, cancel: CancelToken | None = None
) -> Tensor:
    """Encode voices, float32 mono 16 kHz of one length, once a request: (n, frames, layers, channels) on the CPU.

    Raises Cancelled once `cancel` is set.
    """
    features = []
    for voice in voices:
        frames = audio_frames(len(voice), native_fps)
        features.append(model.audio.encode(torch.tensor(voice), frames, cancel=cancel).cpu())
    return torch.stack(features)


@torch.no_grad()
def encode(
    model: Model,
    inputs: Inputs,
    window: Window,
    *,
    history: Tensor | None,
    text: Texts,
    voices: Tensor,
    branches: Sequence[str],
    continuation_style: str,
    fps: float,
    native_fps: float,
    shown: Shown | None = None,
    cancel: CancelToken | None = None,
) -> Conditions:
    """Encode picture, history and voices of one window and embed them for each guidance branch.

    `history` holds the last frames of the window before, float32 (3, M, H, W) in -1 .. 1, M = 4n + 1; None in the first
    window. `continuation_style`: "multitalk" conditions on the history and takes its latents for motion;
    "infinitetalk" conditions on the picture in every window and encodes the history by itself for motion, which
    starts with the picture. `shown` keeps what the windows of one request have in common. Raises Cancelled between
    parts once `cancel` is set, and ConfigError for another style.
    """
    if continuation_style not in STYLES:
        raise ConfigError(
            f"no continuation named {continuation_style!r}", field="continuation.style", hint=" or ".join(STYLES)
        )
    picture = to_pixels(inputs.image).to(model.device)
    recent = picture[:, None] if history is None else history.to(model.device, torch.float32)
    clean = continuation_style == "infinitetalk"
    given = picture[:, None] if clean else recent
    # Where each window is shown something else, nothing is kept.
    shown = shown if clean and shown is not None else Shown()

    def latents_of(pixels: Tensor) -> Tensor:
        with model.use("vae"):
            return model.codec.encode(pixels, cancel=cancel).to(model.device)

    def features_of(pixels: Tensor) -> Tensor:
        with model.use("image_encoder"):
            return model.image.encode(pixels).to(model.device)

    _check(cancel)
    latents = shown.once(f"latents of {window.frames}", lambda: latents_of(_padded(given, window.frames)))
    if clean:
        # Not the first of the latents above: among others they are a bit off.
        motion: Motion | None = Motion(latents_of(recent), clean=True)
    elif history is None:
        motion = None
    else:
        known = 1 + (given.shape[1] - 1) // model.codec.temporal
        motion = Motion(latents[:, :known].clone(), clean=False)
    mask = frame_mask(given.shape[1], window.frames, model.codec.temporal).to(latents)
    mask = mask[:, :, None, None].expand(-1, -1, *latents.shape[2:])

    _check(cancel)
    image = shown.once("features", lambda: features_of(given[:, -1]))

    heard = audio_windows(voices, window.start, window.frames, fps, native_fps).to(model.device)
    masks = torch.tensor(inputs.masks)
    shape = (int(latents.shape[1]), int(latents.shape[2]), int(latents.shape[3]))
    embedded = {}
    with model.use("transformer"):
        for branch in branches:
            _check(cancel)
            words = text.negative if _textless((branch,)) else text.prompt
            if words is None:
                raise RuntimeError(f"{branch} needs the features of the negative prompt")
            silent = branch in ("drop_audio", "uncond")
            embedded[branch] = model.transformer.embed_conditions(
                shape,
                encoder_hidden_states=words,
                encoder_hidden_states_image=image,
                audio_windows=None if silent else heard,
                speaker_masks=None if silent else masks,
            )
    return Conditions(latents=torch.cat([mask, latents]), branches=embedded, motion=motion)


def to_pixels(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn uint8 RGB (H, W, 3) into float32 (3, H, W) in -1 .. 1."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255 * 2 - 1


def frame_mask(known: int, frames: int, temporal: int) -> Tensor:
    """Mark the first `known` of `frames` frames, by latent frame: float32 (temporal, T), 0 or 1.

    The channel is the place within a latent frame's group; the first frame fills a group alone.
    """
    pixels = torch.zeros(frames)
    pixels[:known] = 1
    return torch.cat([pixels[:1].repeat(temporal), pixels[1:]]).view(-1, temporal).T


def _padded(given: Tensor, frames: int) -> Tensor:
    # Mid grey follows, as in Wan's image-to-video training.
    empty = given.new_zeros(given.shape[0], frames - given.shape[1], *given.shape[2:])
    return torch.cat([given, empty], dim=1)


def _textless(branches: Sequence[str]) -> bool:
    return any(branch in ("drop_text", "uncond") for branch in branches)


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("encode")
