"""Distil the turbo LoRA: a few steps with one pass each that give the result of many guided steps.

    python -m scripts.train_tiny.turbo --run RUN --data LATENTS [--steps N] [--minutes M]
    torchrun --nproc-per-node 2 -m scripts.train_tiny.turbo -- --run RUN ...

Takes the transformer's average from RUN/transformer.pt, resumes from RUN/turbo.pt; writes RUN/turbo.jsonl, one line a
report, and RUN/loras/turbo.safetensors whenever it ends.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer

from engine.assembly.compose import compose
from plugins.families.multitalk.transformer import TransformerConditions
from plugins.guidance.cfg import CfgConfig, ClassifierFreeGuidance
from plugins.samplers.euler import Euler, EulerConfig
from scripts.train_tiny.examples import MODES, ClipUse, Example, Mode, draw_case, make_example
from scripts.train_tiny.group import join_group, place, share_gradients
from scripts.train_tiny.latents import Samples
from scripts.train_tiny.networks import CONFIGS, Network, hold_labels, tokenize
from scripts.train_tiny.transformer import load_parts

#: The bundle the LoRA is made for: the sampler's steps and shift, no guidance.
STEPS, SHIFT = 5, 3.0
#: The teacher: this many of its steps within one of the student's, with the guidance of the preset's standard bundle.
SUBSTEPS = 3
RANK = 16
#: Layers with a LoRA pair.
LAYERS = r".*blocks\.\d+\.(attn[12]\.to_(q|k|v|out\.0)|audio_attn\.to_(q|kv|out)|ffn\.net\.(0\.proj|2))"


class Teacher:
    """The transformer without its adapter, guided; and the student: the same with it, in one pass."""

    def __init__(self, network: Network, tokenizer: Any) -> None:
        self.network = network
        self.tokenizer = tokenizer
        standard = compose(["model=tiny"]).guidance
        self.guidance = ClassifierFreeGuidance(CfgConfig("cfg", standard.text_scale, standard.audio_scale))

    @torch.no_grad()
    def conditions(self, example: Example, *, audio: bool) -> TransformerConditions:
        """Embed what an example is conditioned on."""
        shape = tuple(example.inputs.shape[2:])
        embedded: TransformerConditions = self.network.transformer.embed_conditions(
            shape,
            encoder_hidden_states=self.network.read(tokenize(self.tokenizer, [example.prompt])),
            encoder_hidden_states_image=self.network.look(example.picture),
            audio_windows=example.windows if audio else None,
            speaker_masks=example.masks if audio else None,
        )
        return embedded

    def velocity(self, latents: Tensor, condition: Tensor, sigma: float, conditions: TransformerConditions) -> Tensor:
        """Return the velocity (C, T, h, w) of one pass."""
        velocity: Tensor = self.network.transformer(
            hidden_states=torch.cat([latents, condition])[None],
            timestep=torch.tensor([1000 * sigma]),
            conditions=conditions,
            return_dict=False,
        )[0][0]
        return velocity

    @torch.no_grad()
    def walk(
        self,
        latents: Tensor,
        condition: Tensor,
        sigmas: Sequence[float],
        conditions: Mapping[str, TransformerConditions],
        hold: Any,
    ) -> Tensor:
        """Go through decreasing times by guided Euler steps, as the standard sampler does."""
        for now, then in pairwise(sigmas):
            velocities = {
                name: self.velocity(latents, condition, now, embedded) for name, embedded in conditions.items()
            }
            latents = hold(latents + (then - now) * self.guidance.combine(velocities), then)
        return latents


def turbo_sigmas() -> list[float]:
    """Return the times of the bundle's steps, 1 to 0."""
    schedule = Euler(EulerConfig(steps=STEPS, shift=SHIFT)).schedule()
    return [time / 1000 for time in schedule.timesteps]


def distil_once(
    teacher: Teacher,
    sample: Any,
    case: ClipUse,
    sigmas: list[float],
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """Return the loss of one step of one clip: the student's velocity against where the teacher arrives."""
    transformer = teacher.network.transformer
    # After the last step nothing is left to do.
    index = int(rng.integers(len(sigmas) - 2))
    sigma, then = sigmas[index], sigmas[index + 1]
    example = make_example(
        sample, ClipUse(**(vars(case) | {"sigma": sigma, "audio": True, "prompt": None})), rng, generator
    )
    channels = example.target.shape[0]
    latents, condition = example.inputs[0, :channels], example.inputs[0, channels:]
    clean = sample.latents[:, : case.length]

    def hold(latents: Tensor, time: float) -> Tensor:
        if not case.known:
            return latents
        leading = clean[:, : case.known]
        if case.mode != "clean":
            leading = (1 - time) * leading + time * torch.randn(leading.shape, generator=generator)
        return torch.cat([leading, latents[:, case.known :]], dim=1)

    student_sees = {"cond": teacher.conditions(example, audio=True)}
    teacher_sees = student_sees | {"drop_audio": teacher.conditions(example, audio=False)}
    if index > 0 and rng.random() < 0.5:
        # Where the student itself arrives, not only where noised clips are.
        with torch.no_grad():
            latents = hold(torch.randn(latents.shape, generator=generator), 1.0)
            for now, next_ in pairwise(sigmas[: index + 1]):
                velocity = teacher.velocity(latents, condition, now, student_sees["cond"])
                latents = hold(latents + (next_ - now) * velocity, next_)
    transformer.disable_adapters()
    between = [float(time) for time in np.linspace(sigma, then, SUBSTEPS + 1)]
    arrived = teacher.walk(latents, condition, between, teacher_sees, hold)
    transformer.enable_adapters()
    target = (latents - arrived) / (sigma - then)
    errors = (teacher.velocity(latents, condition, sigma, student_sees["cond"]) - target).square().mean(dim=0)
    return (errors * example.weights).sum() / example.weights.sum()


def add_adapter(transformer: Any, name: str) -> None:
    """Add a LoRA with no initial effect to the transformer, and freeze the rest."""
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS), adapter_name=name)


def lora_state(transformer: Any, name: str) -> dict[str, Tensor]:
    """Return the adapter under the names that LoRA files of this network use, in float16."""
    state = get_peft_model_state_dict(transformer, adapter_name=name)
    return {f"transformer.{name}": tensor.detach().half().contiguous() for name, tensor in state.items()}


class Turbo:
    """Draws a clip, and returns the loss of the student on it."""

    name = "turbo"

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._first = [index for index, facts in enumerate(samples.facts) if facts.plan.offset == 0]
        self._sigmas = turbo_sigmas()

    def loss(self, teacher: Teacher, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """Return the loss of one step of one clip."""
        samples = self._samples
        mode: Mode = list(MODES)[int(rng.choice(len(MODES), p=list(MODES.values())))]
        sample = samples[int(rng.choice(self._first if mode == "first" else len(samples)))]
        case = draw_case(sample.facts, mode, 0.5, rng)
        return distil_once(teacher, sample, case, self._sigmas, rng, generator)


def train(
    run: Path,
    data: Path,
    student: type[Any],
    *,
    steps: int,
    seed: int,
    rate: float,
    accumulate: int,
    minutes: float,
) -> None:
    """Distil for `steps` steps of `accumulate` clips in all, or until `minutes` are over."""
    rank, world = place()
    lesson = student(Samples(data, "train"))
    name = lesson.name
    tokenizer = AutoTokenizer.from_pretrained(run / "tokenizer", local_files_only=True, trust_remote_code=False)
    network = Network(CONFIGS, binding=False, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id)
    load_parts(network, run)
    network.requires_grad_(False)
    add_adapter(network.transformer, name)
    hold_labels(network.transformer)
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint, step = run / f"{name}.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        set_peft_model_state_dict(network.transformer, state["lora"], adapter_name=name)
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    teacher = Teacher(network, tokenizer)
    began, losses, by_step = time.monotonic(), [], 20
    over = step >= steps
    while not over:
        rng = np.random.default_rng((8, seed, step, rank))
        generator = torch.Generator().manual_seed(10**9 + seed * 10**8 + step + rank * 10**7)
        for group in optimiser.param_groups:
            group["lr"] = (
                rate * min(1.0, (step + 1) / 20) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
            )
        for _ in range(accumulate // world):
            loss = lesson.loss(teacher, rng, generator)
            torch.autograd.backward(loss * world / accumulate)
            losses.append(float(loss.detach()))
        over = time.monotonic() - began >= 60 * minutes
        if world > 1:
            over = share_gradients(network, over, world)
        nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        over = over or step >= steps
        if rank == 0 and (step % by_step == 0 or over):
            row = {"step": step, "loss": float(np.mean(losses)), "seconds": time.monotonic() - began}
            losses.clear()
            with (run / f"{name}.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
        if rank == 0 and (step % 100 == 0 or over):
            lora = get_peft_model_state_dict(network.transformer, adapter_name=name)
            torch.save({"lora": lora, "optimiser": optimiser.state_dict(), "step": step}, checkpoint)
    if rank == 0:
        (run / "loras").mkdir(exist_ok=True)
        save_file(lora_state(network.transformer, name), run / "loras" / f"{name}.safetensors", {"format": "pt"})


def main(student: type[Any] = Turbo, about: str | None = __doc__) -> None:
    """Read the command line and distil."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of the transformer's training")
    parser.add_argument("--data", type=Path, required=True, help="folder of encoded clips")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, to be resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--accumulate", type=int, default=4, help="clips a step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    join_group()
    train(
        arguments.run,
        arguments.data,
        student,
        steps=arguments.steps,
        seed=arguments.seed,
        rate=arguments.rate,
        accumulate=arguments.accumulate,
        minutes=arguments.minutes,
    )


if __name__ == "__main__":
    main()
