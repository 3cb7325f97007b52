"""Inputs and a window -> Conditions: everything the network is steered by, embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.components import CancelToken
from engine.data import Conditions, Inputs, Motion, Window
from engine.errors import Cancelled, ConfigError
from engine.media.color import Statistics, color_statistics
from engine.multitalk.audio import audio_frames, audio_windows

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.loading.model import Model

STYLES = ("multitalk", "infinitetalk")


@dataclass(frozen=True)
class Texts:
    """Features of the prompts, each (1, tokens, text_dim); the negative one only where a branch needs it."""

    prompt: Tensor
    negative: Tensor | None


class PictureCache:
    """Features and latents of a request's picture: made once, though several windows are conditioned on them.

    A few MB, on the device. Latents are those of the picture before grey, and so belong to a number of frames.
    """

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._tensors: dict[str, Tensor] = {}

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return what was made under a name, or make it."""
        if name not in self._tensors:
            self._tensors[name] = make()
        return self._tensors[name]


@dataclass(frozen=True)
class Conditioning:
    """What all windows of a request are conditioned on."""

    text: Texts
    #: Features of each speaker's voice, (n, frames, layers, channels), on the CPU.
    voices: Tensor
    #: Those of the picture, which `decode` pulls the frames towards.
    colors: Statistics
    picture: PictureCache = field(default_factory=PictureCache)


@dataclass(frozen=True)
class EncodeOptions:
    """How a request's config has its windows encoded."""

    #: Of the guidance: what is embedded.
    branches: Sequence[str]
    #: "multitalk" conditions on the history and takes its latents for motion; "infinitetalk" conditions on the picture
    #: in every window and encodes the history by itself for motion, which starts with the picture.
    style: str
    #: Frames a second: of the axis on which windows lie, and of the axis on which voices are encoded.
    fps: float
    native_fps: float


def encode_prompt_and_voices(
    model: Model,
    inputs: Inputs,
    prompts: tuple[str, str],
    options: EncodeOptions,
    *,
    cancel: CancelToken | None = None,
) -> Conditioning:
    """Encode what is the same for all windows, once a request: the prompt, the negative prompt, and the voices.

    Raises Cancelled once `cancel` is set.
    """
    return Conditioning(
        text=encode_text(model, *prompts, options.branches),
        voices=encode_voices(model, inputs.voices, options.native_fps, cancel),
        colors=color_statistics(to_pixels(inputs.image).permute(1, 2, 0).numpy()),
    )


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
    conditioning: Conditioning,
    options: EncodeOptions,
    history: Tensor | None,
    *,
    cancel: CancelToken | None = None,
) -> Conditions:
    """Encode picture, history and voices of one window and embed them for each guidance branch.

    `history` holds the last frames of the window before, float32 (3, M, H, W) in -1 .. 1, M = 4n + 1; None in the first
    window. Raises Cancelled between parts once `cancel` is set, and ConfigError for another style.
    """
    if options.style not in STYLES:
        raise ConfigError(
            f"no continuation named {options.style!r}", field="continuation.style", hint=" or ".join(STYLES)
        )
    picture = to_pixels(inputs.image).to(model.device)
    recent = picture[:, None] if history is None else history.to(model.device, torch.float32)
    clean = options.style == "infinitetalk"
    given = picture[:, None] if clean else recent
    # Where each window is conditioned on other frames, nothing is kept.
    cache = conditioning.picture if clean else PictureCache()

    def latents_of(pixels: Tensor) -> Tensor:
        with model.use("vae"):
            return model.codec.encode(pixels, cancel=cancel).to(model.device)

    def features_of(pixels: Tensor) -> Tensor:
        with model.use("image_encoder"):
            return model.image.encode(pixels).to(model.device)

    _check(cancel)
    latents = cache.once(f"latents of {window.frames}", lambda: latents_of(_padded(given, window.frames)))
    if clean:
        # Not the first of the latents above: among others they are a bit off.
        motion: Motion | None = Motion(latents_of(recent), clean=True)
    elif history is None:
        motion = None
    else:
        length = 1 + (given.shape[1] - 1) // model.codec.temporal
        motion = Motion(latents[:, :length].clone(), clean=False)
    mask = frame_mask(given.shape[1], window.frames, model.codec.temporal).to(latents)
    mask = mask[:, :, None, None].expand(-1, -1, *latents.shape[2:])

    _check(cancel)
    image = cache.once("features", lambda: features_of(given[:, -1]))

    voices = conditioning.voices
    audio = audio_windows(voices, window.start, window.frames, options.fps, options.native_fps).to(model.device)
    masks = torch.tensor(inputs.masks)
    shape = (int(latents.shape[1]), int(latents.shape[2]), int(latents.shape[3]))
    embedded = {}
    with model.use("transformer"):
        for branch in options.branches:
            _check(cancel)
            words = conditioning.text.negative if _textless((branch,)) else conditioning.text.prompt
            if words is None:
                raise RuntimeError(f"{branch} needs the features of the negative prompt")
            silent = branch in ("drop_audio", "uncond")
            embedded[branch] = model.transformer.embed_conditions(
                shape,
                encoder_hidden_states=words,
                encoder_hidden_states_image=image,
                audio_windows=None if silent else audio,
                speaker_masks=None if silent else masks,
            )
    return Conditions(latents=torch.cat([mask, latents]), branches=embedded, motion=motion)


def to_pixels(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn uint8 RGB (H, W, 3) into float32 (3, H, W) in -1 .. 1."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255 * 2 - 1


def frame_mask(given: int, frames: int, temporal: int) -> Tensor:
    """Mark the first `given` of `frames` frames, by latent frame: float32 (temporal, T), 0 or 1.

    The channel is the place within a latent frame's group; the first frame fills a group alone.
    """
    pixels = torch.zeros(frames)
    pixels[:given] = 1
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
