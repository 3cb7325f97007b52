"""Distil the LoRA of the embedded FlashTalk: four steps of one pass, each followed by new noise, for one person.

    python -m scripts.train_tiny.flashtalk --run RUN --data LATENTS [--steps N] [--minutes M]
    torchrun --nproc-per-node 2 -m scripts.train_tiny.flashtalk -- --run RUN ...

Takes the transformer from RUN/transformer, resumes from RUN/flashtalk.pt; writes RUN/flashtalk.jsonl, one line a
report, and RUN/loras/flashtalk.safetensors whenever it ends.

At each of the four noise levels the student learns, in one pass, where many guided steps of the teacher end: the clean
estimate to which the sampler `renoise` jumps. Half of the starting points are noised clips, half come from the
student's own jumps.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plugins.samplers.renoise import Renoise, RenoiseConfig
from scripts.train_tiny.examples import ClipUse, make_example
from scripts.train_tiny.latents import Samples
from scripts.train_tiny.turbo import Teacher, main

STEPS, SHIFT = 4, 5.0
#: Latent frames of a window of 33 frames, and of the five frames that it repeats.
LENGTH, KNOWN = 9, 2
#: Steps of the teacher from pure noise; fewer from lower levels.
TEACHER_STEPS = 12
#: The teacher's times are shifted as those of the preset's standard bundle.
TEACHER_SHIFT = 5.0


class FlashTalk:
    """Draws a window of a clip of one person, and returns the loss of the student on it."""

    name = "flashtalk"

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._fit = [
            index
            for index, facts in enumerate(samples.facts)
            if len(facts.silent) == 1 and facts.plan.frames >= 4 * LENGTH - 3
        ]
        schedule = Renoise(RenoiseConfig(bundle="standard", steps=STEPS, shift=SHIFT)).schedule()
        self._sigmas = [time / 1000 for time in schedule.timesteps]

    def loss(self, teacher: Teacher, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Return the loss of one step of one clip: the student's clean estimate against the teacher's."""
        sample = self._samples[int(rng.choice(self._fit))]
        index = int(rng.integers(STEPS))
        sigma = self._sigmas[index]
        case = ClipUse(
            mode="clean", length=LENGTH, known=KNOWN if sample.facts.plan.offset else 1, sigma=sigma, audio=True
        )
        example = make_example(sample, case, rng, generator)
        channels = example.target.shape[0]
        latents, condition = example.inputs[0, :channels], example.inputs[0, channels:]
        clean = sample.latents[:, : case.length]

        def hold(latents: Tensor, _time: float) -> Tensor:
            return torch.cat([clean[:, : case.known], latents[:, case.known :]], dim=1)

        student_sees = {"cond": teacher.conditions(example, audio=True)}
        teacher_sees = student_sees | {"drop_audio": teacher.conditions(example, audio=False)}
        if index > 0 and rng.random() < 0.5:
            latents = self._own(teacher, latents, condition, index, student_sees["cond"], hold, generator)
        transformer = teacher.network.transformer
        transformer.disable_adapters()
        arrived = teacher.walk(latents, condition, _times(sigma), teacher_sees, hold)
        transformer.enable_adapters()
        target = (latents - arrived) / sigma
        errors = (teacher.velocity(latents, condition, sigma, student_sees["cond"]) - target).square().mean(dim=0)
        return (errors * example.weights).sum() / example.weights.sum()

    @torch.no_grad()
    def _own(
        self,
        teacher: Teacher,
        like: Tensor,
        condition: Tensor,
        index: int,
        conditions: Any,
        hold: Any,
        generator: torch.Generator,
    ) -> Tensor:
        """Return where the student itself arrives after `index` steps from noise."""
        latents = hold(torch.randn(like.shape, generator=generator), 1.0)
        for now, then in pairwise(self._sigmas[: index + 1]):
            estimate = latents - now * teacher.velocity(latents, condition, now, conditions)
            fresh = torch.randn(like.shape, generator=generator)
            latents = hold((1 - then) * estimate + then * fresh, then)
        arrived: Tensor = latents
        return arrived


def _times(start: float) -> list[float]:
    """Return the teacher's noise levels from `start` down to 0."""
    even = np.linspace(1, 0, TEACHER_STEPS + 1)
    levels = TEACHER_SHIFT * even / (1 + (TEACHER_SHIFT - 1) * even)
    return [start, *(float(level) for level in levels if level < start - 0.02)]


if __name__ == "__main__":
    main(FlashTalk, __doc__)
