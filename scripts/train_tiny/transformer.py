"""Train the transformer with its text and image encoders on encoded clips, by flow matching.

    python -m scripts.train_tiny.transformer --run RUN --data LATENTS [--steps N] [--minutes M]
    torchrun --nproc-per-node 2 -m scripts.train_tiny.transformer -- --run RUN ...

Two processes share the clips of a step; on two cores that is twice as fast, two threads are not. Resumes from
RUN/transformer.pt, exactly as if it had not stopped; writes RUN/transformer.jsonl, one line a report, and whenever it
ends RUN/{transformer,text_encoder,image_encoder,tokenizer} in the layout they ship in.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from engine.data import Region
from engine.multitalk.audio import audio_windows
from engine.multitalk.image import clip_pixels
from engine.multitalk.text import clean_prompt
from engine.multitalk.transformer import MultiTalkTransformer3DModel
from engine.stages.canvas import make_canvas, region_masks
from engine.stages.encode import frame_mask, to_pixels
from scripts.train_tiny import vae
from scripts.train_tiny.latents import MOTIONS, NATIVE_FPS, Facts, Sample, Samples
from scripts.train_tiny.muon import Muon
from scripts.train_tiny.places import PLACES
from scripts.train_tiny.scene import ENERGIES, MOODS, TIMES
from scripts.train_tiny.words import WORDS

TEMPORAL = 4
TEXT_DIM, TEXT_LEN, VOCABULARY = 64, 64, 1200
IMAGE_DIM, IMAGE_SIZE, IMAGE_PATCH = 64, 224, 32

TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 40,
    "num_layers": 5,
    "in_channels": 2 * vae.CHANNELS + TEMPORAL,
    "out_channels": vae.CHANNELS,
    "ffn_dim": 640,
    "freq_dim": 128,
    "text_dim": TEXT_DIM,
    "text_len": TEXT_LEN,
    "image_dim": IMAGE_DIM,
    "image_tokens": (IMAGE_SIZE // IMAGE_PATCH) ** 2 + 1,
    "added_kv_proj_dim": 160,
    "audio_layers": 3,
    "audio_channels": 64,
    "audio_intermediate_dim": 256,
    "audio_output_dim": 96,
    "audio_tokens": 4,
}
TEXT: dict[str, Any] = {
    "d_model": TEXT_DIM,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
}
# The engine reads the tokens after the last layer but one.
IMAGE: dict[str, Any] = {
    "hidden_size": IMAGE_DIM,
    "intermediate_size": 128,
    "projection_dim": IMAGE_DIM,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": IMAGE_PATCH,
}


@dataclass(frozen=True)
class Configs:
    """Sizes of the three networks and of the tokenizer."""

    transformer: dict[str, Any]
    text: dict[str, Any]
    image: dict[str, Any]
    vocabulary: int


CONFIGS = Configs(TRANSFORMER, TEXT, IMAGE, VOCABULARY)

Mode = Literal["first", "continued", "clean"]
#: First window; MultiTalk's continuation, with history mixed with noise of the step; InfiniteTalk's windows, with
#: clean history (in the first one: the picture) and conditions from the picture.
MODES: dict[Mode, float] = {"first": 0.6, "continued": 0.25, "clean": 0.15}
#: Shares of samples without audio (one speaker's zeros, as guidance has it), and without the prompt that belongs.
NO_AUDIO, NO_PROMPT = 0.1, 0.1
#: Said in place of the prompt; the second is the model preset's negative prompt.
EMPTY = ("", "still picture, blurred")
ON_MOUTH = 15.0
SHIFT = 3.0
#: Attributes that a prompt tells, and those that a picture shows (a mood begins only after it).
TOLD: dict[str, tuple[str, ...]] = {
    "mood": tuple(MOODS),
    "energy": tuple(ENERGIES),
    "time": tuple(TIMES),
    "place": tuple(PLACES),
    "people": ("1", "2"),
}
SHOWN = ("time", "place", "people")


# --- networks ---------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """Transformer, text and image encoder, trained together, and linear readings of the two encoders.

    The readings guess the scene's attributes. Their small loss makes words and places linearly readable within
    minutes; left to the video's loss, where the words matter for few latents, that takes most of the training.
    """

    def __init__(self, configs: Configs, *, binding: bool, pad: int = 0, end: int = 1) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

        super().__init__()
        self.transformer: Any = MultiTalkTransformer3DModel(**configs.transformer)
        initialise(self.transformer, binding=binding)
        self.text_encoder: Any = UMT5EncoderModel(
            UMT5Config(vocab_size=configs.vocabulary, pad_token_id=pad, eos_token_id=end, **configs.text)
        )
        self.image_encoder: Any = CLIPVisionModel(CLIPVisionConfig(**configs.image))
        self.told = nn.ModuleDict(
            {name: nn.Linear(int(configs.text["d_model"]), len(values)) for name, values in TOLD.items()}
        )
        self.shown = nn.ModuleDict(
            {name: nn.Linear(int(configs.image["hidden_size"]), len(TOLD[name])) for name in SHOWN}
        )

    def read(self, tokens: Any) -> Tensor:
        """Return the features of a tokenized batch of prompts, (B, tokens, text_dim)."""
        output = self.text_encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        features: Tensor = output.last_hidden_state
        return features

    def look(self, pixels: Tensor) -> Tensor:
        """Return the features of a picture (3, H, W), -1 .. 1: (1, tokens, image_dim), as the engine takes them."""
        given = clip_pixels(pixels, int(self.image_encoder.config.image_size))
        features: Tensor = self.image_encoder(pixel_values=given, output_hidden_states=True).hidden_states[-2]
        return features


def initialise(transformer: Any, *, binding: bool) -> None:
    """Start the transformer from nothing: Glorot's weights, zero biases, a head that says 0.

    `binding` makes faces find their voices from the first step on: keys of the self-attention begin as its queries,
    so that a token looks at what is like it and the map of who is where means something; and audio queries and keys
    share a bias in the channels whose label phase tells the two speakers' ranges apart, so that a token's own voice
    has the larger logit. A choice, not an ablated finding.
    """
    with torch.no_grad():
        for module in transformer.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()
        for module in transformer.condition_embedder.time_embedder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        transformer.proj_out.weight.zero_()
        if not binding:
            return
        heads, dim = transformer.config.num_attention_heads, transformer.config.attention_head_dim
        frequencies = 10000.0 ** -(torch.arange(0, dim, 2) / dim)
        # 20 labels lie between the ranges: about half a turn.
        apart = ((frequencies > 0.09) & (frequencies < 0.2)).float() * 2.5
        for block in transformer.blocks:
            block.attn1.to_k.weight.copy_(block.attn1.to_q.weight)
            shared = torch.randn(heads * dim) * 0.5
            block.attn1.to_q.bias.copy_(shared)
            block.attn1.to_k.bias.copy_(shared)
            bias = apart.repeat_interleave(2).repeat(heads)
            block.audio_attn.to_q.bias.copy_(bias)
            block.audio_attn.to_kv.bias[: heads * dim].copy_(bias)


def hold_labels(transformer: Any) -> None:
    """Let no gradient through the label positions: who a token belongs to is a decision, and half of the time."""

    def detach(_module: nn.Module, _given: Any, output: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        return output[0], None if output[1] is None else output[1].detach()

    for block in transformer.blocks:
        block.attn1.register_forward_hook(detach)


def make_tokenizer(prompts: Iterable[str], vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer trained on prompts and plain words: any text comes back from its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    phrases = [f"It is, {word}." for group in (MOODS, ENERGIES) for _, words in group.values() for word in words]
    phrases += [f"It is {word}." for words in (*TIMES.values(), tuple(PLACES), EMPTY) for word in words]
    plain = [" ".join(words) for words in WORDS.values()]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        [*prompts, *phrases * 10, *plain],
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    end = core.token_to_id("</s>")
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        model_max_length=TEXT_LEN,
        clean_up_tokenization_spaces=False,
    )


def tokenize(tokenizer: Any, prompts: Sequence[str]) -> Any:
    """Tokenize a batch as the engine tokenizes one prompt."""
    return tokenizer(
        [clean_prompt(prompt) for prompt in prompts],
        max_length=TEXT_LEN,
        truncation=True,
        padding=len(prompts) > 1,
        return_attention_mask=True,
        return_tensors="pt",
    )


# --- examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
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


def draw_case(facts: Facts, mode: Mode, share: float, rng: np.random.Generator) -> Case:
    """Draw how to use a clip when `share` of the training is done: at first mostly short pieces, many for the time."""
    whole = 1 + (facts.plan.frames - 1) // TEMPORAL
    limit = 5 if share < 0.6 and rng.random() < 0.85 else 9 if share < 0.8 else whole
    motion = 1
    if mode == "continued":
        motion = facts.plan.motion
    elif mode == "clean" and facts.plan.offset:
        motion = int(rng.choice([length for length in MOTIONS if length <= facts.plan.frames - 8]))
    known = 1 + (motion - 1) // TEMPORAL
    sigma = 1 / (1 + math.exp(-float(rng.standard_normal())))
    boxes = bool(rng.random() < 0.4)
    return Case(
        mode=mode,
        length=min(whole, max(limit, known + 2)),
        known=known if mode != "first" else 0,
        sigma=SHIFT * sigma / (1 + (SHIFT - 1) * sigma),
        audio=bool(rng.random() >= NO_AUDIO),
        prompt=None if rng.random() >= NO_PROMPT else str(rng.choice(EMPTY)),
        boxes=boxes,
        exchanged=boxes and bool(rng.random() < 0.5),
    )


def make_example(sample: Sample, case: Case, rng: np.random.Generator, generator: torch.Generator) -> Example:
    """Make what the engine's encode and denoise stages would give the network at this time of this window."""
    plan, clean = sample.facts.plan, sample.latents[:, : case.length]
    frames = 1 + TEMPORAL * (case.length - 1)
    noise = torch.randn(clean.shape, generator=generator)
    noisy = (1 - case.sigma) * clean + case.sigma * noise
    weights = 1 + (ON_MOUTH - 1) * sample.mouths[: case.length].float()
    # What is given is put back after every step: what the network says of it is not used.
    weights[: case.known] = 0
    if case.mode == "clean":
        # The autoencoder is causal, so that history encoded alone has the latents the whole window begins with.
        noisy[:, : case.known] = clean[:, : case.known]
    continued = case.mode == "continued"
    given = (sample.continued if continued else sample.reference)[:, : case.length]
    mask = frame_mask(plan.motion if continued else 1, frames, TEMPORAL)
    mask = mask[:, :, None, None].expand(-1, -1, *given.shape[2:])
    voices, masks = sample.voices, None
    if case.audio and len(voices) > 1:
        order = [1, 0] if case.exchanged else [0, 1]
        voices = voices[order]
        masks = speaker_masks(plan.size, sample.boxes[order] if case.boxes else None, len(voices), rng)
    return Example(
        inputs=torch.cat([noisy, mask, given])[None],
        timestep=torch.tensor([1000 * case.sigma]),
        windows=audio_windows(voices, plan.offset, frames, plan.fps, NATIVE_FPS) if case.audio else None,
        masks=masks,
        picture=to_pixels(sample.pictures[int(continued)].numpy()),
        prompt=sample.facts.prompt if case.prompt is None else case.prompt,
        target=noise - clean,
        weights=weights,
    )


def speaker_masks(size: tuple[int, int], boxes: Tensor | None, count: int, rng: np.random.Generator) -> Tensor:
    """Return the engine's masks (count + 1, h, w): of its automatic regions, or of faces' boxes drawn inexactly."""
    regions = [Region()] * count
    if boxes is not None:
        edges = boxes.numpy()
        sides = np.tile(edges[:, 2:] - edges[:, :2], 2) * (-1, -1, 1, 1)
        edges = np.clip(edges + sides * rng.uniform(-0.05, 0.2, edges.shape), 0, (*size, *size))
        regions = [Region(box=(float(a), float(b), float(c), float(d))) for a, b, c, d in edges]
    return torch.from_numpy(region_masks(regions, [None] * count, make_canvas(size, size))[0])


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


def losses(velocity: Tensor, example: Example) -> tuple[Tensor, float]:
    """Return the weighted mean squared error, and for the report the plain one on mouths."""
    errors = (velocity - example.target).square().mean(dim=0)
    mouths = example.weights > 1
    on_mouth = float(errors[mouths].mean().detach()) if bool(mouths.any()) else math.nan
    return (errors * example.weights).sum() / example.weights.sum(), on_mouth


def attribute_loss(
    network: Network, tokenizer: Any, data: Samples, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Return the cross-entropies of the encoders' readings on some prompts and pictures, and their accuracies."""
    told = [data.facts[int(i)] for i in rng.integers(len(data), size=16)]
    tokens = tokenize(tokenizer, [facts.prompt for facts in told])
    mask = tokens.attention_mask[..., None].float()
    sentence = (network.read(tokens) * mask).sum(dim=1) / mask.sum(dim=1)
    seen = [data[int(i)] for i in rng.integers(len(data), size=3)]
    looks = torch.cat([network.look(to_pixels(sample.pictures[0].numpy())).mean(dim=1) for sample in seen])
    total, right = torch.zeros(()), {}
    for kind, heads, features, facts in (
        ("told", network.told, sentence, told),
        ("shown", network.shown, looks, [sample.facts for sample in seen]),
    ):
        hits = []
        for name, head in heads.items():
            wanted = torch.tensor([TOLD[name].index(one.attributes[name]) for one in facts])
            guess = head(features)
            total = total + F.cross_entropy(guess, wanted)
            hits.append(float((guess.argmax(dim=1) == wanted).float().mean()))
        right[kind] = float(np.mean(hits))
    return total, right


# --- training ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def validate(network: Network, tokenizer: Any, held_out: Samples, count: int = 24) -> dict[str, float]:
    """Return losses on held-out clips with fixed noise and times, by mode; on mouths also without audio, to be
    compared with `val_mouth`, and with two speakers' voices exchanged, to be compared with `val_mouth_both`.
    """
    found: dict[str, list[float]] = defaultdict(list)
    modes: tuple[Mode, ...] = tuple(MODES)
    for index in range(min(count, len(held_out))):
        sample = held_out[index]
        mode = modes[index % 3] if sample.facts.plan.offset == 0 else modes[1 + index % 2]
        rng = np.random.default_rng((7, index))
        case = draw_case(sample.facts, mode, 0.5, rng)
        # Times spread evenly over the middle, where sound decides.
        case = Case(mode, case.length, case.known, sigma=0.3 + 0.6 * (index * 0.618 % 1), boxes=case.boxes)
        both = len(sample.voices) > 1 and not any(sample.facts.silent)
        for kind in ("", "_silent", "_exchanged") if both else ("", "_silent"):
            given = replace(sample, voices=sample.voices.flip(0)) if kind == "_exchanged" else sample
            now = replace(case, audio=kind != "_silent")
            example = make_example(given, now, np.random.default_rng(index), torch.Generator().manual_seed(index))
            loss, mouth = losses(predict(network, tokenizer, example), example)
            found[f"val_mouth{kind}"].append(mouth)
            if not kind:
                found["val"].append(float(loss))
                found[f"val_{mode}"].append(float(loss))
                if both:
                    found["val_mouth_both"].append(mouth)
    return {name: float(np.nanmean(values)) for name, values in found.items()}


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
    save: int = 250,
    binding: bool = True,
    configs: Configs = CONFIGS,
    start: Path | None = None,
) -> None:
    """Train for `steps` steps of `accumulate` clips in all, from the checkpoint in `run` if there is one.

    Stops after `minutes`, too (after one step at least), with a checkpoint to go on from. Every step draws from its
    own seed, so that a training that was stopped and resumed is the one that was not. In a torch.distributed group the
    clips of a step are shared among its processes, and the first one writes. `start` is a model's folder to begin from
    where there is no checkpoint yet.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    run.mkdir(parents=True, exist_ok=True)
    samples, held_out = Samples(data, "train"), Samples(data, "held_out")
    by_mode: dict[Mode, list[int]] = {mode: list(range(len(samples))) for mode in MODES}
    by_mode["first"] = [index for index, facts in enumerate(samples.facts) if facts.plan.offset == 0]
    if not all(by_mode.values()):
        raise ValueError(f"{data} has no encoded clips that begin with their picture; encode more")
    torch.manual_seed(seed)
    if rank > 0:
        distributed.barrier()
    tokenizer = _tokenizer(run / "tokenizer", samples, configs.vocabulary)
    if rank == 0 and world > 1:
        distributed.barrier()
    network = Network(configs, binding=binding, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id)
    if start is not None:
        _load_parts(network, start)
    average = copy.deepcopy(network)
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
        # What decides how long a forward takes is drawn alike by all processes: none waits for another.
        common = np.random.default_rng((9, seed, step))
        for _ in range(accumulate // world):
            mode: Mode = list(MODES)[int(common.choice(len(MODES), p=list(MODES.values())))]
            work = samples.facts[int(common.choice(by_mode[mode]))].plan.tokens
            sample = samples[int(rng.choice([i for i in by_mode[mode] if samples.facts[i].plan.tokens == work]))]
            case = draw_case(sample.facts, mode, step / steps, common)
            own = draw_case(sample.facts, mode, step / steps, rng)
            case = replace(own, length=case.length, known=case.known)
            example = make_example(sample, case, rng, generator)
            loss, mouth = losses(predict(network, tokenizer, example), example)
            torch.autograd.backward(loss * world / accumulate)
            for name, value in (("loss", float(loss.detach())), (mode, float(loss.detach())), ("mouth", mouth)):
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
        finish(average, run)


def join_group() -> None:
    """Join the processes that torchrun started, where it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("gloo")


def share_gradients(network: nn.Module, over: bool, world: int) -> bool:
    """Average the gradients of all processes in place; say whether the time is over for one of them."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    joined = torch.cat([torch.tensor([float(over)]), *(g.flatten() for g in gradients)])
    distributed.all_reduce(joined)
    for gradient, mean in zip(gradients, torch.split(joined[1:], [g.numel() for g in gradients]), strict=True):
        gradient.copy_((mean / world).view_as(gradient))
    return bool(joined[0] > 0)


def finish(network: Network, folder: Path) -> None:
    """Save the parts in float16 into `folder`; the tokenizer is there from the training's first step on."""
    for name in ("transformer", "text_encoder", "image_encoder"):
        copy.deepcopy(getattr(network, name)).half().save_pretrained(folder / name)


def _tokenizer(folder: Path, samples: Samples, vocabulary: int) -> Any:
    from transformers import AutoTokenizer

    if not folder.exists():
        make_tokenizer((facts.prompt for facts in samples.facts), vocabulary).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _load_parts(network: Network, folder: Path) -> None:
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
    parser.add_argument("--threads", type=int, default=1, help="more than one is slower beside another training")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    join_group()
    train(
        given.run,
        given.data,
        steps=given.steps,
        minutes=given.minutes,
        seed=given.seed,
        rate=given.rate,
        accumulate=given.accumulate,
        binding=given.binding,
        start=given.start,
    )


if __name__ == "__main__":
    main()
