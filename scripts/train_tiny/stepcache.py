"""Fit TeaCache's polynomial for the trained transformer and print it as the preset has it, with its errors.

    python -m scripts.train_tiny.stepcache --model RUN/model/tiny --data RUN/latents

Between two steps of a sampler the time embedding changes by one relative L1 distance, the blocks' output by another;
the polynomial tells the second from the first (TeaCache, arXiv 2411.19108, 3.3). Both are seen on held-out clips
with schedules of several lengths, as few steps make large changes and many make small ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import AutoTokenizer

from engine.assembly.compose import compose
from plugins.samplers.euler import Euler, EulerConfig
from scripts.train_tiny import vae
from scripts.train_tiny.examples import ClipUse, make_example
from scripts.train_tiny.latents import Sample, Samples
from scripts.train_tiny.networks import CONFIGS, Network
from scripts.train_tiny.transformer import load_parts
from scripts.train_tiny.turbo import Teacher

STEPS = (10, 16, 30)
DEGREE = 2


@contextmanager
def watched(transformer: Any) -> Iterator[dict[str, Tensor]]:
    """Keep the last forward's time embedding, "signal", and what its blocks gave, "output"."""
    inputs: dict[str, Tensor] = {}

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs["signal"] = kwargs["temb"] if "temb" in kwargs else args[2]

    def after(_: Any, __: tuple[Any, ...], output: Tensor) -> None:
        inputs["output"] = output

    handles = [
        transformer.blocks[0].register_forward_pre_hook(before, with_kwargs=True),
        transformer.blocks[-1].register_forward_hook(after),
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def changes(teacher: Teacher, sample: Sample, steps: int, shift: float, seed: int) -> list[tuple[float, float]]:
    """Return the relative changes of embedding and output from step to step of a guided sampling of a first window."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    example = make_example(sample, ClipUse("first", sample.latents.shape[1], 0, sigma=1.0), rng, generator)
    channels = example.target.shape[0]
    latents, condition = example.inputs[0, :channels], example.inputs[0, channels:]
    conditions = {
        "drop_audio": teacher.conditions(example, audio=False),
        "cond": teacher.conditions(example, audio=True),
    }
    sigmas = [time / 1000 for time in Euler(EulerConfig(steps=steps, shift=shift)).schedule().timesteps]
    pairs: list[tuple[Tensor, Tensor]] = []
    for now, then in pairwise(sigmas):
        with watched(teacher.network.transformer) as inputs:
            velocities = {
                name: teacher.velocity(latents, condition, now, embedded) for name, embedded in conditions.items()
            }
        pairs.append((inputs["signal"], inputs["output"]))
        latents = latents + (then - now) * teacher.guidance.combine(velocities)
    return [(relative(a[0], b[0]), relative(a[1], b[1])) for a, b in pairwise(pairs)]


def relative(before: Tensor, after: Tensor) -> float:
    """Return the L1 distance in parts of the first one's norm."""
    return float((after - before).abs().mean() / before.abs().mean())


def fit(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the polynomial, highest power first, the range it was fitted on, and its mean error."""
    table: npt.NDArray[np.float64] = np.array(pairs)
    coefficients = np.polyfit(table[:, 0], table[:, 1], DEGREE)
    errors = np.abs(np.polyval(coefficients, table[:, 0]) - table[:, 1])
    return {
        "teacache": [float(f"{value:.6g}") for value in coefficients],
        "pairs": len(table),
        "from": round(float(table[:, 0].min()), 4),
        "to": round(float(table[:, 0].max()), 4),
        "change": round(float(table[:, 1].mean()), 4),
        "error": round(float(errors.mean()), 4),
    }


def main() -> None:
    """Read the command line, fit and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the assembled model")
    parser.add_argument("--data", type=Path, required=True, help="folder of encoded clips")
    parser.add_argument("--clips", type=int, default=6, help="of each resolution, at most")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(
        arguments.model / "tokenizer", local_files_only=True, trust_remote_code=False
    )
    network = Network(CONFIGS, binding=False, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id)
    load_parts(network, arguments.model)
    teacher, held_out = Teacher(network.eval(), tokenizer), Samples(arguments.data, "held_out")
    for name, sizes in (("small", vae.SIZES), ("large", vae.LARGE)):
        indices = [i for i, facts in enumerate(held_out.facts) if facts.plan.offset == 0 and facts.plan.size in sizes]
        shift = compose(["model=tiny", f"resolution={name}"]).sampler.shift
        pairs = [
            pair
            for i in indices[: arguments.clips]
            for steps in STEPS
            for pair in changes(teacher, held_out[i], steps, shift, i)
        ]
        if pairs:
            print(json.dumps({name: fit(pairs)}))


if __name__ == "__main__":
    main()
