"""Prompts, voices and pictures -> features: what all windows of a request share, for every family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.components import CancelToken
from engine.data import EncodeOptions, Inputs, Plan
from engine.data.plan import cue_of
from engine.media.color import Statistics, color_statistics
from engine.network.audio import audio_frames

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from engine.loading.model import Model


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
class Listened:
    """What is encoded once per request; see `engine.family.Prepared`."""

    #: One entry per window of the plan.
    windows: Sequence[Conditioning]

    @property
    def reused(self) -> bool:
        """Whether all prompts were known from an earlier request."""
        return self.windows[0].text.reused


def encode_prompt_and_voices(
    model: Model,
    inputs: Inputs,
    prompts: tuple[Sequence[str], str],
    plan: Plan,
    options: EncodeOptions,
    *,
    cancel: CancelToken | None = None,
) -> Listened:
    """Encode all prompts, the negative prompt and the voices, once per request; return each window's of them.

    `prompts` are the request's prompts in the order of time, and the negative one. Raises Cancelled once `cancel` is
    set.
    """
    texts = encode_texts(model, *prompts, options.branches)
    voices = encode_voices(model, inputs.voices, options.native_fps, cancel)
    return share(inputs, plan, texts, voices)


def share(inputs: Inputs, plan: Plan, texts: Sequence[Texts], voices: Tensor) -> Listened:
    """Return each window's prompt, of `texts` in the order of time, its picture's colours, and the voices."""
    colors = [color_statistics(to_pixels(image)) for image in (inputs.image, *inputs.images)]
    cache = PictureCache()
    windows = []
    for window in plan.windows:
        text, picture = texts[cue_of(plan.prompts, window.index)], cue_of(plan.images, window.index)
        windows.append(Conditioning(text, voices, colors[picture], cache, picture))
    return Listened(windows)


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
    texts = dict.fromkeys((*prompts, negative) if textless(branches) else prompts)
    reused = all(model.prompts.find(text) is not None for text in texts)
    with nullcontext() if reused else model.use("text_encoder"):
        features = {
            text: model.prompts.once(text, model.text.encode).to(
                model.device if text in (prompts[0], negative) else "cpu"
            )
            for text in texts
        }
    return tuple(
        Texts(features[prompt], features[negative] if textless(branches) else None, reused) for prompt in prompts
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


def to_pixels(image: npt.NDArray[np.uint8]) -> Tensor:
    """Turn uint8 RGB (H, W, 3) into float32 (3, H, W) in -1 .. 1."""
    return torch.tensor(image).permute(2, 0, 1).float() / 255 * 2 - 1


def textless(branches: Sequence[str]) -> bool:
    return any(branch in ("drop_text", "uncond") for branch in branches)
