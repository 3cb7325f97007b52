"""Train the audio encoder: a small wav2vec 2.0 that regresses the mouth's movement, so that its layers contain it.

    python -m scripts.train_tiny.audio --run FOLDER [--steps N]

Resumes from FOLDER/audio.pt; writes FOLDER/audio.jsonl and, in the end, FOLDER/audio_encoder in transformers' layout.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2Model

from engine.evaluation.voices import SAMPLE_RATE, Voice
from engine.network.audio import AudioEncoder
from scripts.train_tiny.speech import Split, say

CONFIG = Wav2Vec2Config(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    conv_dim=(32, 32, 32, 48, 48, 64, 64),
    feat_extract_norm="layer",
    conv_bias=True,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    hidden_dropout=0.0,
    activation_dropout=0.0,
    attention_dropout=0.0,
    feat_proj_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    apply_spec_augment=False,
    vocab_size=32,
)
FPS = 25
#: Weights of opening, width, level, and their change; the first two count most.
WEIGHTS = torch.tensor([4.0, 2.0, 1.0, 1.0])
_POOL = 400


class Regressor(nn.Module):
    """The encoder with a linear head on all its layers, like the transformer's audio projection."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Wav2Vec2Model(CONFIG)
        self.head = nn.Linear(CONFIG.hidden_size * CONFIG.num_hidden_layers, len(WEIGHTS))

    def forward(self, voices: Tensor, frames: int) -> Tensor:
        """Read (B, samples), normalised, as (B, frames, 4)."""

        def interpolate(_module: nn.Module, _inputs: tuple[Tensor, ...], features: Tensor) -> Tensor:
            return F.interpolate(features, size=frames, mode="linear", align_corners=True)

        handle = self.encoder.feature_extractor.register_forward_hook(interpolate)
        try:
            states = self.encoder(voices, output_hidden_states=True).hidden_states[1:]
        finally:
            handle.remove()
        read: Tensor = self.head(torch.cat(states, dim=-1))
        return read


def targets(voice: Voice, frames: int) -> npt.NDArray[np.float32]:
    """Return (frames, 4): the mouth at each frame's time, and the loudness."""
    # The middle of a native frame's time, as the clips are drawn.
    at = np.arange(frames) / FPS + 0.5 / FPS
    opening = voice.opening(at)
    change = (voice.opening(at + 0.04) - voice.opening(at - 0.04)) / 2
    samples = np.pad(voice.samples, (0, SAMPLE_RATE // FPS))
    power = [float(np.square(samples[int(t * SAMPLE_RATE) - 320 :][:640]).mean()) for t in at]
    loudest = max(max(power), 1e-9)
    level = np.clip(np.log10(np.maximum(power, 1e-12) / loudest) / 4 + 1, 0, 1)
    return np.stack([opening, voice.width(at), level, change], axis=1).astype(np.float32)


def batch(voices: list[Voice], frames: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut one stretch of `frames` from each voice: normalised samples (B, S), targets (B, frames, 4)."""
    length = frames * SAMPLE_RATE // FPS
    inputs, expected = [], []
    for voice in voices:
        start = int(rng.integers(0, (len(voice.samples) - length) // 640 + 1)) * 640
        samples = voice.samples[start : start + length]
        inputs.append((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
        whole = targets(voice, len(voice.samples) * FPS // SAMPLE_RATE)
        expected.append(whole[start // 640 : start // 640 + frames])
    return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(expected))


@torch.no_grad()
def evaluate(model: Regressor, split: Split = "held_out", count: int = 24) -> dict[str, float]:
    """Return mean correlations of opening and width with the truth, through the engine's own encoder."""
    encoder = AudioEncoder(model.encoder.train(False))
    openings, widths = [], []
    for seed in range(count):
        voice = say(50_000 + seed, 3.24, split)
        features = encoder.encode(torch.from_numpy(voice.samples), 81)
        read = model.head(features.flatten(1)).numpy()
        truth = targets(voice, 81)
        openings.append(np.corrcoef(read[:, 0], truth[:, 0])[0, 1])
        widths.append(np.corrcoef(read[:, 1], truth[:, 1])[0, 1])
    model.encoder.train()
    return {
        "opening": float(np.mean(openings)),
        "opening_worst": float(np.min(openings)),
        "width": float(np.mean(widths)),
    }


def train(run: Path, *, steps: int, seed: int, rate: float = 2e-3) -> None:
    """Train for `steps` steps in all, from the checkpoint in `run` if there is one."""
    run.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = Regressor()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=1e-2)
    step, checkpoint = 0, run / "audio.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    rng = np.random.default_rng((seed, step))
    pool = [say(int(rng.integers(1 << 31)), 6.0) for _ in range(_POOL)]
    began, losses = time.monotonic(), []
    while step < steps:
        share = step / steps
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))
        frames = int(rng.choice((33, 49, 81)))
        sample = [pool[int(rng.integers(len(pool)))] for _ in range(12)]
        inputs, targets = batch(sample, frames, rng)
        loss = ((model(inputs, frames) - targets).square() * WEIGHTS).mean()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        losses.append(float(loss.detach()))
        pool[step % len(pool)] = say(int(rng.integers(1 << 31)), 6.0)
        if step % 100 == 0 or step == steps:
            row = {"step": step, "loss": float(np.mean(losses)), "seconds": time.monotonic() - began}
            losses.clear()
            row |= evaluate(model)
            torch.save(
                {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step},
                checkpoint,
            )
            with (run / "audio.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    model.encoder.train(False).half().save_pretrained(run / "audio_encoder")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.run, steps=arguments.steps, seed=arguments.seed)


if __name__ == "__main__":
    main()
