"""Train the video autoencoder: first short crops, then longer ones.

    python -m scripts.train_tiny.vae --run FOLDER [--steps N] [--threads N]
    python -m scripts.train_tiny.vae --run FOLDER --start engine/weights/tiny/vae    # further, from finished weights
    python -m scripts.train_tiny.vae --run FOLDER --start engine/weights/tiny/vae --decoder --skin 4

The last trains the decoder alone, so that latents and the transformer that learnt them stay valid, and shows it one
class of skin in every other clip.
Resumes from FOLDER/vae.pt; writes FOLDER/vae.jsonl, one line a report, and in the end FOLDER/vae in diffusers' layout.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from scripts.train_tiny.clips import Clip, make_clip
from scripts.train_tiny.muon import Muon
from scripts.train_tiny.people import SKINS
from scripts.train_tiny.scene import random_scene
from scripts.train_tiny.speech import Speak, say

#: Small enough for a laptop; `patch_size=2` leaves out the layers at full resolution, which cost most. 24 channels: the
#: best linear code of 8 x 8 x 4 pixels of these clips with 16 numbers has 27.1 dB, with 24 it has 29.0.
CHANNELS = 24
CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": CHANNELS,
    "dim_mult": [1, 3, 6],
    "num_res_blocks": 1,
    "attn_scales": [],
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 8,
    "scale_factor_temporal": 4,
    "latents_mean": [0.0] * CHANNELS,
    "latents_std": [1.0] * CHANNELS,
}
SIZES = ((160, 96), (128, 128), (96, 160))
#: Of the pictures the training sees, one in six is large.
LARGE = ((320, 192), (256, 256), (192, 320))
FRAMES = 33
#: Frame rates besides 25, slow ones more often: four frames of one latent then have four different mouths.
OTHER_FPS = (8.0, 8.0, 8.0, 8.0, 10.0, 12.0, 12.5, 12.5, 15.0, 16.0, 20.0, 24.0, 30.0)
#: Share of the clips that have one of them.
OTHER = 0.6
#: Loss weight of a mouth by skin class: on darker skin its edges have less contrast in absolute brightness.
ON_SKIN = (1.0, 1.0, 1.0, 1.4, 2.8, 2.8)
#: Loss weight of mouths: they matter most, and are a hundredth of the picture.
ON_MOUTH = 15.0
#: From one seed to the next where a clip is looked for that shows somebody with a certain skin.
_FURTHER_ON = 100_000
#: Share of the steps on what the autoencoder made itself, which is what a continued window begins with; and how heavy
#: their loss is, which is far smaller than that of a new picture.
AGAIN, ON_AGAIN = 0.25, 3.0


@dataclass(frozen=True)
class Phase:
    """A part of the training: until `share` of the steps, batches of `batch` pieces of one of `lengths` frames."""

    share: float
    lengths: tuple[int, ...]
    batch: int
    #: Side of a square crop in pixels.
    crop: int


# Never a single piece: torch's convolution of one small clip is five times as slow.
PHASES = (
    Phase(0.50, (5,), 4, 64),
    Phase(0.70, (5, 9), 4, 64),
    Phase(0.85, (9, 17), 3, 64),
    Phase(1.00, (17, 33), 2, 80),
)
#: For weights that are a codec already: mostly long pieces, in which brightness could drift.
FURTHER = (
    Phase(0.35, (5, 9), 6, 64),
    Phase(0.75, (9, 17), 4, 64),
    Phase(1.00, (17, 33), 2, 96),
)


def initialise(vae: nn.Module, generator: torch.Generator) -> None:
    """Start near a linear codec: residual branches small, causal kernels carried by their last temporal tap.

    With the usual initialisation the signal arrives mixed with the zeros that pad a causal convolution, and the first
    hundreds of steps are spent on undoing that.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanResample, WanResidualBlock

    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                if module.bias is not None:
                    module.bias.zero_()
                _orthogonal(module.weight, generator)
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                module.conv2.weight.mul_(0.05)
            if isinstance(module, WanAttentionBlock):
                module.proj.weight.zero_()
            if isinstance(module, WanResample) and hasattr(module, "time_conv"):
                weight = module.time_conv.weight
                channels = weight.shape[1]
                weight.mul_(0.3)
                for start in range(0, weight.shape[0], channels):
                    weight[start : start + channels, :, -1, 0, 0] += torch.eye(channels)


def _orthogonal(weight: Tensor, generator: torch.Generator) -> None:
    spatial = weight.shape[-1] > 1
    plane = torch.empty(weight.shape[0], weight.shape[1] * weight.shape[-2] * weight.shape[-1])
    nn.init.orthogonal_(plane, 1.4 if spatial and weight.dim() == 4 else 1.0, generator=generator)
    plane = plane.view(weight.shape[0], weight.shape[1], weight.shape[-2], weight.shape[-1])
    if weight.dim() == 4:
        weight.copy_(plane)
        return
    weight.mul_(0.3 if weight.shape[2] > 1 else 0.0)
    weight[:, :, -1] += plane


class ClipPool:
    """Rendered clips in memory; some are replaced as the training goes on, so that no face is learnt by heart.

    Every other clip shows somebody of the class `skin`, if there is one.
    """

    def __init__(self, size: int, seed: int, skin: int | None = None, speak: Speak = say) -> None:
        self._seed = seed
        self._skin = skin
        self._speak = speak
        self._next = 0
        self._rng = np.random.default_rng((8, seed))
        self.clips = [self._new() for _ in range(size)]

    def _new(self) -> Clip:
        self._next += 1
        sizes, frames = (LARGE, 17) if self._next % 6 == 0 else (SIZES, FRAMES)
        size = sizes[self._next // 2 % len(sizes)]
        fps = float(self._rng.choice(OTHER_FPS)) if self._rng.random() < OTHER else 25.0
        seed = self._seed + self._next
        if self._skin is not None and self._next % 2:
            while all(person.skin != self._skin for person in random_scene(seed, size).people):
                seed += _FURTHER_ON
        return make_clip(seed, frames=frames, fps=fps, size=size, speak=self._speak)

    def refresh(self, count: int) -> None:
        """Replace the `count` oldest clips."""
        for _ in range(count):
            self.clips.pop(0)
            self.clips.append(self._new())

    def batch(self, phase: Phase, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return pixels (B, 3, T, H, W) in -1 .. 1 and weights (B, 1, T, H, W), larger on mouths."""
        length = int(rng.choice(phase.lengths))
        pieces: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]] = []
        while len(pieces) < phase.batch:
            clip = self.clips[int(rng.integers(len(self.clips)))]
            if len(clip.frames) >= length:
                pieces.append(_piece(clip, length, phase.crop, rng))
        pixels = np.stack([piece for piece, _ in pieces]).astype(np.float32) / 127.5 - 1
        weights = np.stack([weight for _, weight in pieces])
        return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3).contiguous(), torch.from_numpy(weights)[:, None]


def _piece(
    clip: Clip, length: int, crop: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    frames, height, width = clip.frames.shape[:3]
    start = int(rng.integers(frames - length + 1))
    pixels = clip.frames[start : start + length]
    weights = mouth_weights(clip)[start : start + length]
    if rng.random() < 0.7:
        person = int(rng.integers(len(clip.mouth_boxes)))
        x0, y0, x1, y1 = clip.mouth_boxes[person, start]
        x, y = (x0 + x1) / 2 - crop / 2 + rng.integers(-24, 25), (y0 + y1) / 2 - crop / 2 + rng.integers(-32, 17)
    else:
        x, y = rng.integers(width - crop + 1), rng.integers(height - crop + 1)
    x, y = int(np.clip(x, 0, width - crop)), int(np.clip(y, 0, height - crop))
    pixels, weights = pixels[:, y : y + crop, x : x + crop], weights[:, y : y + crop, x : x + crop]
    if rng.random() < 0.5:
        pixels, weights = pixels[:, :, ::-1], weights[:, :, ::-1]
    return np.ascontiguousarray(pixels), np.ascontiguousarray(weights)


def mouth_weights(clip: Clip) -> npt.NDArray[np.float32]:
    """Return (F, H, W): 1, and in the boxes of the mouths ON_MOUTH times ON_SKIN."""
    frames, height, width = clip.frames.shape[:3]
    weights = np.ones((frames, height, width), np.float32)
    for boxes, skin in zip(clip.mouth_boxes, clip.skins, strict=True):
        for frame, (x0, y0, x1, y1) in enumerate(boxes):
            rows, columns = slice(max(0, int(y0)), math.ceil(y1)), slice(max(0, int(x0)), math.ceil(x1))
            weights[frame, rows, columns] = ON_MOUTH * ON_SKIN[skin]
    return weights


def loss_of(
    vae: Any, pixels: Tensor, weights: Tensor, noise: float, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return the training loss and, for the report, the plain weighted L1."""
    mean = vae.encode(pixels).latent_dist.mean
    # The decoder must bear the errors of a generated latent; the encoder learns to use room for that.
    latents = mean + noise * torch.randn(mean.shape, generator=generator)
    output = vae.decode(latents).sample
    error = (output - pixels) * weights
    total = weights.sum() * pixels.shape[1]
    l1 = error.abs().sum() / total
    l2 = ((output - pixels).square() * weights).sum() / total
    # Brightness that drifts from frame to frame is a small error everywhere, which L1 hardly measures.
    drift = (output - pixels).mean(dim=(3, 4)).abs().mean()
    # Edges in the picture, and changes in time: a mouth that is still must not flicker.
    edges = sum(
        ((output - pixels).diff(dim=dim) * weights.narrow(dim, 1, weights.shape[dim] - 1)).abs().sum() / total
        for dim in (2, 3, 4)
    )
    return l1 + 8 * l2 + 2 * drift + 0.5 * edges + 5e-4 * mean.float().square().mean(), float(l1.detach())


def hold_encoder(vae: AutoencoderKLWan) -> None:
    """Train only the decoder, so that latents keep their meaning."""
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)


@torch.no_grad()
def remake(vae: Any, pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Return what the autoencoder makes of `pixels` and somewhat inexact latents, as a history that was generated.

    Where that comes back as it was, windows meet without a seam.
    """
    mean = vae.encode(pixels).latent_dist.mean
    noise = 0.1 * float(torch.rand((), generator=generator)) * torch.randn(mean.shape, generator=generator)
    remade: Tensor = vae.decode(mean + noise).sample.clamp(-1, 1)
    return remade


@torch.no_grad()
def evaluate(vae: Any, clips: Sequence[Clip]) -> dict[str, float]:
    """Return PSNR of whole frames and of mouths in dB, the largest drift of a frame's mean brightness in 1/255, and the
    PSNR of coding again what was coded once, against that.
    """
    full, mouth, drift, again = [], [], [], []
    for clip in clips:
        pixels = torch.from_numpy(clip.frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
        output = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        once = output.clamp(-1, 1)
        twice = vae.decode(vae.encode(once).latent_dist.mode()).sample
        again.append(-10 * math.log10(float(((twice - once) / 2).square().mean())))
        error = ((output - pixels) / 2).square()[0].mean(dim=0).numpy()
        full.append(-10 * math.log10(error.mean()))
        on = mouth_weights(clip) > 1
        mouth.append(-10 * math.log10(error[on].mean()))
        drift.append(float((output - pixels)[0].mean(dim=(0, 2, 3)).abs().max()) * 127.5)
    return {
        "psnr": float(np.mean(full)),
        "psnr_mouth": float(np.mean(mouth)),
        "drift_255": float(np.max(drift)),
        "psnr_again": float(np.mean(again)),
    }


def train(
    run: Path,
    *,
    steps: int,
    seed: int,
    pool_size: int,
    rate: float,
    start: Path | None = None,
    decoder: bool = False,
    skin: int | None = None,
) -> None:
    """Train for `steps` steps in all, from the checkpoint in `run` if there is one.

    `start` is a finished autoencoder's folder to begin from where there is no checkpoint yet. With `decoder` the
    encoder and the latents' mean and deviation stay as they are there. `skin` is that of `Pool`.
    """
    run.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKLWan(**CONFIG)
    if start is None:
        initialise(vae, torch.Generator().manual_seed(seed))
    else:
        initial = AutoencoderKLWan.from_pretrained(start, torch_dtype=torch.float32)
        vae.load_state_dict(initial.state_dict())
    if decoder:
        hold_encoder(vae)
    phases = PHASES if start is None else FURTHER
    average = AutoencoderKLWan(**CONFIG)
    average.load_state_dict(vae.state_dict())
    optimiser = Muon(vae, rate, betas=(0.9, 0.99), weight_decay=1e-4)
    step = 0
    checkpoint = run / "vae.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    rng = np.random.default_rng((seed, step))
    generator = torch.Generator().manual_seed(seed + step)
    pool = ClipPool(pool_size, seed=1_000_000 * (1 + seed) + 10 * step, skin=skin)
    held_out = [make_clip(900_000_000 + i, frames=FRAMES, size=SIZES[i % 3], split="held_out") for i in range(6)]
    at_8_fps = [
        make_clip(910_000_000 + i, frames=FRAMES, fps=8.0, size=SIZES[i % 3], split="held_out") for i in range(3)
    ]
    began, losses = time.monotonic(), []
    while step < steps:
        share = step / steps
        phase = next(phase for phase in phases if share < phase.share)
        # Warm-up, then a cosine to a twentieth.
        factor = min(1.0, (step + 1) / 30) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        pixels, weights = pool.batch(phase, rng)
        again = start is not None and rng.random() < AGAIN
        if again:
            pixels = remake(vae, pixels, generator)
        loss, l1 = loss_of(vae, pixels, weights, noise=0.0 if again else 0.05, generator=generator)
        optimiser.zero_grad()
        torch.autograd.backward(loss * ON_AGAIN if again else loss)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        decay = min(0.99, step / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), vae.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        step += 1
        losses.append(l1)
        if step % 10 == 0:
            pool.refresh(1)
        if step % 100 == 0 or step == steps:
            row = {"step": step, "l1": float(np.mean(losses)), "seconds": time.monotonic() - began}
            losses.clear()
            if step % 500 == 0 or step == steps:
                row |= evaluate(average, held_out)
                row["psnr_mouth_8_fps"] = evaluate(average, at_8_fps)["psnr_mouth"]
                state = {"vae": vae.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
                torch.save(state | {"step": step}, checkpoint)
            with (run / "vae.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    if start is not None and decoder:
        average.register_to_config(latents_mean=initial.config.latents_mean, latents_std=initial.config.latents_std)
        average.to(torch.float16).save_pretrained(run / "vae")
    else:
        finish(average, pool.clips[:60], run / "vae")


@torch.no_grad()
def finish(vae: Any, clips: Sequence[Clip], folder: Path) -> None:
    """Measure the latents' mean and deviation by channel, put them into the config and save in float16."""
    latents = []
    for clip in clips:
        pixels = torch.from_numpy(clip.frames.astype(np.float32) / 127.5 - 1).permute(3, 0, 1, 2)[None]
        latents.append(vae.encode(pixels).latent_dist.mode()[0].flatten(1))
    joined = torch.cat(latents, dim=1)
    vae.register_to_config(
        latents_mean=[round(float(x), 4) for x in joined.mean(dim=1)],
        latents_std=[round(float(x), 4) for x in joined.std(dim=1)],
    )
    vae.to(torch.float16).save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--steps", type=int, help="1300, and 3150 from finished weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pool", type=int, default=300, help="clips held in memory")
    parser.add_argument("--rate", type=float, help="0.003, and 0.002 from finished weights")
    parser.add_argument("--start", type=Path, help="finished autoencoder's folder to begin from")
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone, from finished weights")
    parser.add_argument("--skin", type=int, help="class of skin, 0 to 5, that every other clip shows")
    parser.add_argument("--threads", type=int, default=1, help="more than one is slower beside another training")
    arguments = parser.parse_args()
    if arguments.decoder and not arguments.start:
        parser.error("--decoder needs --start: a decoder alone cannot learn from an untrained encoder")
    if arguments.skin is not None and arguments.skin not in range(len(SKINS)):
        parser.error(f"--skin is {arguments.skin}; classes are 0 to {len(SKINS) - 1}")
    torch.set_num_threads(arguments.threads)
    train(
        arguments.run,
        steps=arguments.steps or (3150 if arguments.start else 1300),
        seed=arguments.seed,
        pool_size=arguments.pool,
        rate=arguments.rate or (2e-3 if arguments.start else 3e-3),
        start=arguments.start,
        decoder=arguments.decoder,
        skin=arguments.skin,
    )


if __name__ == "__main__":
    main()
