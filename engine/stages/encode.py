"""Inputs and a window -> Conditions: prompt, picture, voices and history, encoded and embedded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.components import CancelToken
from engine.data import Conditions, Inputs, Motion, Plan, Window
from engine.data.plan import cue_of
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
    """Features of the prompts, each (1, tokens, text_dim); the negative one only if a branch needs it."""

    prompt: Tensor
    negative: Tensor | None
    #: Whether all of them were known from an earlier request, so that the text encoder did not run.
    reused: bool = False


class PictureCache:
    """Features and latents of a request's picture, computed once for all windows.

    A few MB, on the device. Latents are of the picture followed by grey frames, so they depend on the number of frames.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._tensors: dict[str, Tensor] = {}
        self._picture = 0

    def turn(self, picture: int) -> None:
        """Forget the tensors of another picture than the one of this index, so that only one's are in memory."""
        if picture != self._picture:
            self._tensors.clear()
            self._picture = picture

    def once(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """Return the tensor stored under `name`; compute and store it the first time."""
        if name not in self._tensors:
            self._tensors[name] = make()
        return self._tensors[name]


@dataclass(frozen=True)
class Conditioning:
    """The conditions of a window that are known before the first one; windows share what is equal."""

    #: Of the window's prompt.
    text: Texts
    #: Features of each speaker's voice, (n, frames, layers, channels), on the CPU.
    voices: Tensor
    #: Colour statistics of the window's picture; `decode` corrects the frames towards them.
    colors: Statistics
    picture: PictureCache = field(default_factory=PictureCache)
    #: Index of the window's picture: 0 is the request's first or only one.
    number: int = 0


@dataclass(frozen=True)
class EncodeOptions:
    """Settings of a request for encoding its windows."""

    #: The guidance branches to embed conditions for.
    branches: Sequence[str]
    #: "multitalk" conditions on the history and uses its latents as motion. "infinitetalk" conditions every window on
    #: the picture and encodes the history separately as motion; the first window's motion is the picture.
    style: str
    #: Frames per second of the windows' time axis, and of the time axis on which voices are encoded.
    fps: float
    native_fps: float


def encode_prompt_and_voices(
    model: Model,
    inputs: Inputs,
    prompts: tuple[Sequence[str], str],
    plan: Plan,
    options: EncodeOptions,
    *,
    cancel: CancelToken | None = None,
) -> tuple[Conditioning, ...]:
    """Encode all prompts, the negative prompt and the voices, once per request; return each window's of them.

    `prompts` are the request's prompts in the order of time, and the negative one. Raises Cancelled once `cancel` is
    set.
    """
    texts = encode_texts(model, *prompts, options.branches)
    voices = encode_voices(model, inputs.voices, options.native_fps, cancel)
    colors = [color_statistics(to_pixels(image)) for image in (inputs.image, *inputs.images)]
    cache = PictureCache()
    conditionings = []
    for window in plan.windows:
        text, picture = texts[cue_of(plan.prompts, window.index)], cue_of(plan.images, window.index)
        conditionings.append(Conditioning(text, voices, colors[picture], cache, picture))
    return tuple(conditionings)


def encode_text(model: Model, prompt: str, negative: str, branches: Sequence[str]) -> Texts:
    """Encode one prompt as `encode_texts` does."""
    return encode_texts(model, (prompt,), negative, branches)[0]


@torch.no_grad()
def encode_texts(model: Model, prompts: Sequence[str], negative: str, branches: Sequence[str]) -> tuple[Texts, ...]:
    """Encode the prompts, once per request; the negative one only if one of `branches` drops the text.

    Each text is encoded once, however often it is used. Features that the model's `prompts` knows are not encoded
    again. If it knows all, the text encoder is not even moved to the device. The first prompt and the negative one are
    returned on the model's device; later ones are on the CPU until their window, so that many take no device memory.
    """
    texts = dict.fromkeys((*prompts, negative) if _textless(branches) else prompts)
    reused = all(model.prompts.find(text) is not None for text in texts)
    with nullcontext() if reused else model.use("text_encoder"):
        features = {
            text: model.prompts.once(text, model.text.encode).to(
                model.device if text in (prompts[0], negative) else "cpu"
            )
            for text in texts
        }
    return tuple(
        Texts(features[prompt], features[negative] if _textless(branches) else None, reused) for prompt in prompts
    )


@torch.no_grad()
def encode_voices(
    model: Model, voices: Sequence[npt.NDArray[np.float32]], native_fps: float, cancel: CancelToken | None = None
) -> Tensor:
    """Encode voices, float32 mono 16 kHz of equal length, once per request: (n, frames, layers, channels) on the CPU.

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

    _check(cancel)
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

    _check(cancel)
    image = cache.once("features", lambda: features_of(reference[:, -1]))

    voices = conditioning.voices
    audio = audio_windows(voices, window.start, window.frames, options.fps, options.native_fps).to(model.device)
    masks = torch.tensor(inputs.masks)
    shape = (int(latents.shape[1]), int(latents.shape[2]), int(latents.shape[3]))
    embedded = {}
    with model.use("transformer"):
        for branch in options.branches:
            _check(cancel)
            text = conditioning.text.negative if _textless((branch,)) else conditioning.text.prompt
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


def to_pixels(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn uint8 RGB (H, W, 3) into float32 (3, H, W) in -1 .. 1."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255 * 2 - 1


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


def _textless(branches: Sequence[str]) -> bool:
    return any(branch in ("drop_text", "uncond") for branch in branches)


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None and cancel.is_set():
        raise Cancelled("encode")
