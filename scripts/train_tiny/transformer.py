"""Train the transformer with its text and image encoders on encoded clips, by flow matching.

    python -m scripts.train_tiny.transformer --run RUN --data LATENTS [--steps N] [--minutes M]
    torchrun --nproc-per-node 2 -m scripts.train_tiny.transformer -- --run RUN ...
    python -m scripts.train_tiny.transformer --run SETTLED --data LATENTS --start RUN --settle --steps 850 --rate 0.001

The last is for finished weights whose colours drift over a long video: whole windows, most of them continued ones.
Two processes share the clips of a step; on two cores this is twice as fast, unlike two threads. Resumes from
RUN/transformer.pt, exactly as if it had not stopped; writes RUN/transformer.jsonl, one line per report, and whenever it
ends RUN/{transformer,text_encoder,image_encoder,tokenizer} in the layout they ship in.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from engine.stages.encode import to_pixels
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel
from scripts.train_tiny.examples import MODES, ON_MOUTH, ClipUse, Example, Mode, draw_case, draw_shares, make_example
from scripts.train_tiny.group import join_group, place, share_gradients
from scripts.train_tiny.latents import Samples
from scripts.train_tiny.muon import Muon
from scripts.train_tiny.networks import CONFIGS, TOLD, Configs, Network, hold_labels, make_tokenizer, tokenize

#: A training that starts from finished weights draws lengths as if this share of the steps were done.
BEGUN = 0.25
#: How heavy the error of a frame's mean is: hardly any of all errors, but what adds up from window to window.
#: `ON_SETTLED` is for a training with `settle`, and `SETTLED` its shares of modes.
ON_COLOUR, ON_SETTLED = 15.0, 60.0
SETTLED: dict[Mode, float] = {"first": 0.3, "continued": 0.55, "clean": 0.15}


def predict(network: Network, tokenizer: Any, example: Example) -> Tensor:
    """Return the velocity (C, T, h, w)."""
    velocity: Tensor = network.transformer(
        hidden_states=example.inputs,
        timestep=example.timestep,
        encoder_hidden_states=network.read(tokenize(tokenizer, [example.prompt])),
        encoder_hidden_states_image=network.look(example.picture),
        audio_windows=example.windows,
        speaker_masks=example.masks,
        return_dict=False,
    )[0][0]
    return velocity


def losses(velocity: Tensor, example: Example) -> tuple[Tensor, Tensor, float]:
    """Return the weighted mean squared error, that of frames' means, and for the report the plain one on mouths."""
    wrong = velocity - example.target
    errors = wrong.square().mean(dim=0)
    mouths = example.weights >= ON_MOUTH
    on_mouth = float(errors[mouths].mean().detach()) if bool(mouths.any()) else math.nan
    new_frames = example.weights.amax(dim=(1, 2)) > 0
    colour = wrong[:, new_frames].mean(dim=(2, 3)).square().mean()
    return (errors * example.weights).sum() / example.weights.sum(), colour, on_mouth


def attribute_loss(
    network: Network, tokenizer: Any, data: Samples, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the cross-entropies of the encoders' readings on some prompts and pictures, and their accuracies."""
    facts_of_prompts = [data.facts[int(i)] for i in rng.integers(len(data), size=16)]
    tokens = tokenize(tokenizer, [facts.prompt for facts in facts_of_prompts])
    mask = tokens.attention_mask[..., None].float()
    sentence = (network.read(tokens) * mask).sum(dim=1) / mask.sum(dim=1)
    samples = [data[int(i)] for i in rng.integers(len(data), size=3)]
    looks = torch.cat([network.look(to_pixels(sample.pictures[0].numpy())).mean(dim=1) for sample in samples])
    total, right = torch.zeros(()), {}
    for kind, heads, features, facts in (
        ("told", network.told, sentence, facts_of_prompts),
        ("shown", network.shown, looks, [sample.facts for sample in samples]),
    ):
        hits = []
        for name, head in heads.items():
            targets = torch.tensor([TOLD[name].index(one.attributes[name]) for one in facts])
            guess = head(features)
            total = total + F.cross_entropy(guess, targets)
            hits.append(float((guess.argmax(dim=1) == targets).float().mean()))
        right[kind] = float(np.mean(hits))
    return total, right


@torch.no_grad()
def validate(network: Network, tokenizer: Any, held_out: Samples, count: int = 24) -> dict[str, float]:
    """Return losses on held-out clips with fixed noise and times, by mode; on mouths also without audio, to be
    compared with `val_mouth`, and with two speakers' voices exchanged, to be compared with `val_mouth_both`.
    """
    losses_by_name: dict[str, list[float]] = defaultdict(list)
    modes: tuple[Mode, ...] = tuple(MODES)
    for index in range(min(count, len(held_out))):
        sample = held_out[index]
        mode = modes[index % 3] if sample.facts.plan.offset == 0 else modes[1 + index % 2]
        rng = np.random.default_rng((7, index))
        case = draw_case(sample.facts, mode, 0.5, rng)
        # Times spread evenly over the middle, where the sound matters.
        case = ClipUse(mode, case.length, case.known, sigma=0.3 + 0.6 * (index * 0.618 % 1), boxes=case.boxes)
        both = len(sample.voices) > 1 and not any(sample.facts.silent)
        for kind in ("", "_silent", "_exchanged") if both else ("", "_silent"):
            input_sample = replace(sample, voices=sample.voices.flip(0)) if kind == "_exchanged" else sample
            now = replace(case, audio=kind != "_silent")
            example = make_example(
                input_sample, now, np.random.default_rng(index), torch.Generator().manual_seed(index)
            )
            loss, colour, mouth = losses(predict(network, tokenizer, example), example)
            losses_by_name[f"val_mouth{kind}"].append(mouth)
            if not kind:
                losses_by_name["val"].append(float(loss))
                losses_by_name["val_colour"].append(float(colour))
                losses_by_name[f"val_{mode}"].append(float(loss))
                if both:
                    losses_by_name["val_mouth_both"].append(mouth)
    return {name: float(np.nanmean(values)) for name, values in losses_by_name.items()}


def train(
    run: Path,
    data: Path,
    *,
    steps: int,
    seed: int = 0,
    rate: float = 2e-3,
    accumulate: int = 6,
    minutes: float = math.inf,
    report: int = 50,
    save: int = 500,
    binding: bool = True,
    configs: Configs = CONFIGS,
    start: Path | None = None,
    settle: bool = False,
) -> None:
    """Train for `steps` steps of `accumulate` clips in all, from the checkpoint in `run` if there is one.

    Stops after `minutes`, too (after one step at least), with a checkpoint to go on from. Every step draws from its
    own seed, so that a training that was stopped and resumed is the one that was not. In a torch.distributed group the
    clips of a step are shared among its processes, and the first one writes. `start` is a model's folder to begin from
    where there is no checkpoint yet. With `settle` all pieces are whole, most continue a history, and the colours of
    frames weigh ON_SETTLED: what is left of their error adds up from window to window; the parts that are saved lie
    halfway between `start`, without which this raises ValueError, and what was learnt.
    """
    if settle and start is None:
        raise ValueError("settling needs finished weights to begin from: give start")
    rank, world = place()
    run.mkdir(parents=True, exist_ok=True)
    samples, held_out = Samples(data, "train"), Samples(data, "held_out")
    by_mode: dict[Mode, list[int]] = {mode: list(range(len(samples))) for mode in MODES}
    by_mode["first"] = [index for index, facts in enumerate(samples.facts) if facts.plan.offset == 0]
    if not all(by_mode.values()):
        raise ValueError(f"{data} has no encoded clips that begin with their picture; encode more")
    alike: dict[tuple[Mode, int], list[int]] = defaultdict(list)
    for mode, indices in by_mode.items():
        for index in indices:
            alike[mode, samples.facts[index].plan.tokens].append(index)
    shares = {key: draw_shares([samples.facts[index] for index in indices]) for key, indices in alike.items()}
    # The network has already learnt from short pieces.
    ahead = 1.0 if settle else BEGUN if start is not None else 0.0
    modes, on_colour = (SETTLED, ON_SETTLED) if settle else (MODES, ON_COLOUR)
    torch.manual_seed(seed)
    if rank > 0:
        distributed.barrier()
    tokenizer = _tokenizer(run / "tokenizer", samples, configs.vocabulary, start)
    if rank == 0 and world > 1:
        distributed.barrier()
    network = Network(configs, binding=binding, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id)
    if start is not None:
        load_parts(network, start)
    initial, average = copy.deepcopy(network), copy.deepcopy(network)
    hold_labels(network.transformer)
    optimiser = Muon(network, rate, betas=(0.9, 0.98), weight_decay=1e-3)
    checkpoint, step = run / "transformer.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        step = int(state["step"])
    began, recent = time.monotonic(), defaultdict[str, list[float]](list)
    while step < steps:
        rng = np.random.default_rng((6, seed, step, rank) if rank else (6, seed, step))
        generator = torch.Generator().manual_seed(seed * 10**8 + step + rank * 10**7)
        for group in optimiser.param_groups:
            group["lr"] = rate * _schedule(step, steps)
        # All processes draw the same size of clip, so that none waits for another.
        common = np.random.default_rng((9, seed, step))
        for _ in range(accumulate // world):
            mode = list(modes)[int(common.choice(len(modes), p=list(modes.values())))]
            work = samples.facts[int(common.choice(by_mode[mode]))].plan.tokens
            sample = samples[int(rng.choice(alike[mode, work], p=shares[mode, work]))]
            progress = ahead + (1 - ahead) * step / steps
            case = draw_case(sample.facts, mode, progress, common)
            own = draw_case(sample.facts, mode, progress, rng)
            case = replace(own, length=case.length, known=case.known)
            example = make_example(sample, case, rng, generator)
            loss, colour, mouth = losses(predict(network, tokenizer, example), example)
            torch.autograd.backward((loss + on_colour * colour) * world / accumulate)
            loss_value = float(loss.detach())
            for name, value in (
                ("loss", loss_value),
                (mode, loss_value),
                ("mouth", mouth),
                ("colour", float(colour.detach())),
            ):
                recent[name].append(value)
        right: dict[str, float] = {}
        if step % 2 == 0:
            loss, right = attribute_loss(network, tokenizer, samples, rng)
            torch.autograd.backward(0.1 * loss)
        over = time.monotonic() - began >= 60 * minutes
        if world > 1:
            over = share_gradients(network, over, world)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        _follow(average, network, min(0.995, (1 + step) / (20 + step)))
        step += 1
        for name, value in right.items():
            recent[name].append(value)
        last = step == steps or over
        if rank == 0 and (step % report == 0 or last):
            row = {"step": step, "seconds": time.monotonic() - began}
            row |= {name: float(np.nanmean(values)) for name, values in recent.items() if values}
            recent.clear()
            if step % save == 0 or last:
                row |= validate(average, tokenizer, held_out)
                _save(checkpoint, network, average, optimiser, step)
            with (run / "transformer.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            print(json.dumps({name: round(value, 4) for name, value in row.items()}), flush=True)
        if last:
            break
    if rank == 0:
        if settle:
            # Half of the way holds what both ends know (WiSE-FT, arXiv 2109.01903).
            _follow(initial, average, 0.5)
        finish(initial if settle else average, run)


def finish(network: Network, folder: Path) -> None:
    """Save the parts in float16 into `folder`; the tokenizer is there from the training's first step on."""
    for name in ("transformer", "text_encoder", "image_encoder"):
        copy.deepcopy(getattr(network, name)).half().save_pretrained(folder / name)


def _tokenizer(folder: Path, samples: Samples, vocabulary: int, start: Path | None) -> Any:
    from transformers import AutoTokenizer

    if not folder.exists():
        if start is None:
            tokenizer = make_tokenizer((facts.prompt for facts in samples.facts), vocabulary)
        else:
            # The text encoder was trained with its own tokens.
            tokenizer = AutoTokenizer.from_pretrained(
                start / "tokenizer", local_files_only=True, trust_remote_code=False
            )
        tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_parts(network: Network, folder: Path) -> None:
    """Take the three networks' weights from a model's folder."""
    from transformers import CLIPVisionModel, UMT5EncoderModel

    kinds = {"transformer": MultiTalkTransformer3DModel, "text_encoder": UMT5EncoderModel}
    for name, kind in (kinds | {"image_encoder": CLIPVisionModel}).items():
        part = kind.from_pretrained(folder / name, torch_dtype=torch.float32)
        getattr(network, name).load_state_dict(part.state_dict())


def _schedule(step: int, steps: int) -> float:
    # Warm-up, then a cosine to a thirtieth.
    return min(1.0, (step + 1) / 60) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


@torch.no_grad()
def _follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def _save(path: Path, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    state = {"network": network.state_dict(), "average": average.state_dict(), "optimiser": optimiser.state_dict()}
    part = path.with_suffix(".part")
    torch.save(state | {"step": step}, part)
    part.replace(path)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of checkpoints and results")
    parser.add_argument("--data", type=Path, required=True, help="folder of encoded clips, of both splits")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, to be resumed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--accumulate", type=int, default=6, help="clips a step")
    parser.add_argument("--binding", action=argparse.BooleanOptionalAction, default=True, help="see initialise()")
    parser.add_argument("--start", type=Path, help="model's folder to begin from, engine/weights/tiny for one")
    parser.add_argument("--settle", action="store_true", help="whole windows, most of them continued, colours heavier")
    parser.add_argument("--threads", type=int, default=1, help="more than one is slower beside another training")
    arguments = parser.parse_args()
    if arguments.settle and not arguments.start:
        parser.error("--settle needs --start: it is for finished weights")
    torch.set_num_threads(arguments.threads)
    join_group()
    train(
        arguments.run,
        arguments.data,
        steps=arguments.steps,
        minutes=arguments.minutes,
        seed=arguments.seed,
        rate=arguments.rate,
        accumulate=arguments.accumulate,
        binding=arguments.binding,
        start=arguments.start,
        settle=arguments.settle,
    )


if __name__ == "__main__":
    main()
