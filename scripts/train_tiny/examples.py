"""How encoded clips become examples: what the engine would give the network, and what it is to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.data import Region
from engine.media.canvas import make_canvas, region_masks
from engine.network.audio import audio_windows
from engine.stages.encode import to_pixels
from plugins.families.multitalk.conditions import frame_mask
from scripts.train_tiny.latents import MOTIONS, NATIVE_FPS, Facts, Sample
from scripts.train_tiny.networks import EMPTY, TEMPORAL
from scripts.train_tiny.vae import ON_SKIN

Mode = Literal["first", "continued", "clean"]
#: First window; MultiTalk's continuation, with history mixed with noise of the step; InfiniteTalk's windows, with
#: clean history (in the first one: the picture) and conditions from the picture.
MODES: dict[Mode, float] = {"first": 0.55, "continued": 0.3, "clean": 0.15}
#: Shares of samples without audio (one speaker's zeros, as guidance has it), and without the prompt that belongs.
NO_AUDIO, NO_PROMPT = 0.1, 0.1
#: How heavy the loss is on faces, where eyes come apart first as heads move; and on mouths, times ON_SKIN, and on those
#: that are to be still.
ON_FACE, ON_MOUTH, ON_STILL = 2.5, 15.0, 4.0
#: How much more often clips with silent people are drawn, and those whose heads move much.
STILL_SHARE, LIVELY_SHARE = 1.5, 2.0
SHIFT = 3.0
#: Pixels along a side of a latent.
CELL = 8


@dataclass(frozen=True)
class ClipUse:
    """How a clip is used once: `length` latent frames of it, the first `known` of them given where it continues."""

    mode: Mode
    length: int
    known: int
    sigma: float
    audio: bool = True
    #: None: the clip's own.
    prompt: str | None = None
    #: Speakers sit in boxes instead of halves; `exchanged`: the right one is named first.
    boxes: bool = False
    exchanged: bool = False


@dataclass(frozen=True)
class Example:
    """What a forward is given, and the loss: velocity `target` (C, T, h, w) and `weights` (T, h, w)."""

    inputs: Tensor
    timestep: Tensor
    windows: Tensor | None
    masks: Tensor | None
    picture: Tensor
    prompt: str
    target: Tensor
    weights: Tensor


def draw_shares(clips: Sequence[Facts]) -> npt.NDArray[np.float64]:
    """Return how often each of some clips is to be drawn, 1 in all.

    The more, the darker its darkest skin, the slower its frames, and where somebody is silent or heads move much: what
    is harder to learn.
    """
    weights = np.array(
        [
            max(ON_SKIN[skin] for skin in clip.skins)
            * max(1.0, NATIVE_FPS / clip.plan.fps) ** 0.5
            * (STILL_SHARE if any(clip.silent) else 1.0)
            * (LIVELY_SHARE if clip.attributes["energy"] == "lively" else 1.0)
            for clip in clips
        ]
    )
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def draw_case(facts: Facts, mode: Mode, share: float, rng: np.random.Generator) -> ClipUse:
    """Draw how to use a clip when `share` of the training is done: at first mostly short pieces, many for the time."""
    whole = 1 + (facts.plan.frames - 1) // TEMPORAL
    limit = 5 if share < 0.5 and rng.random() < 0.7 else 9 if share < 0.75 else whole
    motion = 1
    if mode == "continued":
        motion = facts.plan.motion
    elif mode == "clean" and facts.plan.offset:
        motion = int(rng.choice([length for length in MOTIONS if length <= facts.plan.frames - 8]))
    known = 1 + (motion - 1) // TEMPORAL
    sigma = 1 / (1 + math.exp(-float(rng.standard_normal())))
    boxes = bool(rng.random() < 0.4)
    return ClipUse(
        mode=mode,
        length=min(whole, max(limit, known + 2)),
        known=known if mode != "first" else 0,
        sigma=SHIFT * sigma / (1 + (SHIFT - 1) * sigma),
        audio=bool(rng.random() >= NO_AUDIO),
        prompt=None if rng.random() >= NO_PROMPT else str(rng.choice(EMPTY)),
        boxes=boxes,
        exchanged=boxes and bool(rng.random() < 0.5),
    )


def make_example(sample: Sample, case: ClipUse, rng: np.random.Generator, generator: torch.Generator) -> Example:
    """Make what the engine's encode and denoise stages would give the network at this time of this window."""
    plan, clean = sample.facts.plan, sample.latents[:, : case.length]
    frames = 1 + TEMPORAL * (case.length - 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = (1 - case.sigma) * clean + case.sigma * noise
    weights = loss_weights(sample)[: case.length]
    # What is given is put back after every step: what the network says of it is not used.
    weights[: case.known] = 0
    if case.mode == "clean":
        # The autoencoder is causal, so that history encoded alone has the latents the whole window begins with.
        noisy[:, : case.known] = clean[:, : case.known]
    continued = case.mode == "continued"
    condition = (sample.continued if continued else sample.reference)[:, : case.length]
    mask = frame_mask(plan.motion if continued else 1, frames, TEMPORAL)
    mask = mask[:, :, None, None].expand(-1, -1, *condition.shape[2:])
    voices, masks = sample.voices, None
    if case.audio and len(voices) > 1:
        order = [1, 0] if case.exchanged else [0, 1]
        voices = voices[order]
        masks = speaker_masks(plan.size, sample.boxes[order] if case.boxes else None, len(voices), rng)
    return Example(
        inputs=torch.cat([noisy, mask, condition])[None],
        timestep=torch.tensor([1000 * case.sigma]),
        windows=audio_windows(voices, plan.offset, frames, plan.fps, NATIVE_FPS) if case.audio else None,
        masks=masks,
        picture=to_pixels(sample.pictures[int(continued)].numpy()),
        prompt=sample.facts.prompt if case.prompt is None else case.prompt,
        target=noise - clean,
        weights=weights,
    )


def loss_weights(sample: Sample) -> Tensor:
    """Return the weights of a whole sample's latents (T, h, w): 1, more on faces, and most where a mouth is."""
    weights = torch.ones(sample.mouths.shape)
    on_mouths = torch.full_like(weights, ON_MOUTH)
    for box, skin, still in zip(sample.boxes, sample.facts.skins, sample.facts.silent, strict=True):
        x0, y0, x1, y1 = (round(float(edge) / CELL) for edge in box)
        weights[:, y0:y1, x0:x1] = ON_FACE
        on_mouths[:, y0:y1, x0:x1] = ON_MOUTH * ON_SKIN[skin] * (ON_STILL if still else 1)
    return torch.where(sample.mouths > 0, on_mouths, weights)


def speaker_masks(size: tuple[int, int], boxes: Tensor | None, count: int, rng: np.random.Generator) -> Tensor:
    """Return the engine's masks (count + 1, h, w): of its automatic regions, or of faces' boxes drawn inexactly."""
    regions = [Region()] * count
    if boxes is not None:
        edges = boxes.numpy()
        sides = np.tile(edges[:, 2:] - edges[:, :2], 2) * (-1, -1, 1, 1)
        edges = np.clip(edges + sides * rng.uniform(-0.05, 0.2, edges.shape), 0, (*size, *size))
        regions = [Region(box=(float(a), float(b), float(c), float(d))) for a, b, c, d in edges]
    return torch.from_numpy(region_masks(regions, [None] * count, make_canvas(size, size))[0])
