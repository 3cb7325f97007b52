"""Encode clips once for the transformer's training: latents, audio features, pictures, boxes and prompts.

    python -m scripts.train_tiny.latents --vae RUN/vae --audio RUN/audio_encoder --out LATENTS --seeds 0 800

Shards have 20 clips each: a safetensors file and, written last, a JSON file of the same name. Existing shards are
skipped, so that a run resumes, and several processes can share the work with disjoint ranges of seeds. Autoencoder and
audio encoder are finished folders or checkpoints of their trainings (.pt), and are kept in LATENTS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import Wav2Vec2Model

from engine.network.audio import AudioEncoder, audio_frames
from engine.network.codec import WanCodec
from engine.stages.encode import to_pixels
from scripts.train_tiny import audio, vae
from scripts.train_tiny.clips import make_clip
from scripts.train_tiny.speech import Speak, Split, say

#: Frame rate of voice features, independent of the clip's own rate.
NATIVE_FPS = 25.0
SHARD = 20
#: Frames of history that a continued window begins with.
MOTIONS = (9, 25)
#: Seeds of held-out clips begin here, so that file names of both splits sort apart.
HELD_OUT = 800_000_000


@dataclass(frozen=True)
class ClipShape:
    """The shape of a seed's clip: a window of `frames` frames that begins `offset` frames after the picture."""

    size: tuple[int, int]
    frames: int
    fps: float
    offset: int
    #: Frames of history in the conditions of the continued window.
    motion: int

    @property
    def tokens(self) -> int:
        """The cost of the window: its number of latents, over the whole picture."""
        width, height = self.size
        return (1 + (self.frames - 1) // 4) * width * height // 64


@dataclass(frozen=True)
class Facts:
    """A clip's entry in a shard's JSON file."""

    seed: int
    split: Split
    plan: ClipShape
    prompt: str
    #: mood, energy, time of day, place, in the words of scene.py and places.py; and how many people there are.
    attributes: dict[str, str]
    silent: tuple[bool, ...]
    #: Classes of skin, 0 light to 5 dark.
    skins: tuple[int, ...]


@dataclass(frozen=True)
class Sample:
    """A clip of n people as it is stored; T latent frames of h x w.

    `latents` (C, T, h, w): the window, normalised. `reference`, `continued`: likewise, of the picture followed by
    mid grey, and of the window's first `plan.motion` frames followed by mid grey. `voices` (n, A, layers, channels):
    features of the whole clip's voices at NATIVE_FPS, from the picture's time on. `mouths`: uint8 (T, h, w), 1 where
    a mouth is. `boxes` (n, 4): faces in pixels. `pictures`: uint8 (2, H, W, 3), the picture and the last frame of
    the history. `openings` (n, F): how far the window's mouths are open, 0 to 1. Floats come as float32.
    """

    facts: Facts
    latents: Tensor
    reference: Tensor
    continued: Tensor
    voices: Tensor
    mouths: Tensor
    boxes: Tensor
    pictures: Tensor
    openings: Tensor


_TENSORS = ("latents", "reference", "continued", "voices", "mouths", "boxes", "pictures", "openings")


def plan(seed: int, split: Split = "train") -> ClipShape:
    """Draw the shape of a seed's clip.

    Three of five are 33 frames long, most others 81; one of twelve is in the large bucket, of 17 frames (81 of them
    cost as much as thirty small clips); three of five have another frame rate. Half of the windows begin with the
    picture, the others up to two seconds later.
    """
    rng = np.random.default_rng((5, split == "held_out", seed))
    frames = int(rng.choice((17, 33, 81), p=(0.1, 0.6, 0.3)))
    sizes: Sequence[tuple[int, int]] = vae.SIZES
    if rng.random() < 1 / 12:
        sizes, frames = vae.LARGE, 17
    size = sizes[int(rng.integers(len(sizes)))]
    fps = float(rng.choice(vae.OTHER_FPS)) if rng.random() < vae.OTHER else NATIVE_FPS
    offset = 0 if rng.random() < 0.5 else int(rng.integers(1, max(2, int(2 * fps)) + 1))
    # At least two latent frames remain to be generated.
    motion = int(rng.choice([length for length in MOTIONS if length <= frames - 8]))
    return ClipShape(size=size, frames=frames, fps=fps, offset=offset, motion=motion)


@torch.no_grad()
def encode_clip(
    codec: WanCodec, hearing: AudioEncoder, seed: int, shape: ClipShape, split: Split, speak: Speak = say
) -> tuple[Facts, dict[str, Tensor]]:
    """Make the clip of a seed and encode it: facts, and tensors as `Sample` has them with floats in float16."""
    clip = make_clip(seed, frames=shape.offset + shape.frames, fps=shape.fps, size=shape.size, split=split, speak=speak)
    window = slice(shape.offset, None)
    pixels = torch.stack([to_pixels(frame) for frame in clip.frames[window]], dim=1)
    picture = to_pixels(clip.frames[0])
    voices = torch.stack(
        [hearing.encode(torch.from_numpy(voice), audio_frames(len(voice), NATIVE_FPS)) for voice in clip.voices]
    )
    on_mouth = torch.from_numpy(vae.mouth_weights(clip)[window] > 1).float()
    # By cell, then by group: the first frame is a latent frame alone, each four that follow share one.
    cells = F.max_pool2d(on_mouth[:, None], codec.spatial)[:, 0]
    groups = [cells[:1], *torch.split(cells[1:], codec.temporal)]
    scene = clip.scene
    facts = Facts(
        seed=seed,
        split=split,
        plan=shape,
        prompt=clip.prompt,
        attributes={
            "mood": scene.mood,
            "energy": scene.energy,
            "time": scene.time_of_day,
            "place": scene.place,
            "people": str(len(scene.people)),
        },
        silent=clip.silent,
        skins=clip.skins,
    )
    latents = {
        "latents": codec.encode(pixels).half(),
        "reference": codec.encode(_padded(picture[:, None], shape.frames)).half(),
        "continued": codec.encode(_padded(pixels[:, : shape.motion], shape.frames)).half(),
    }
    tensors = latents | {
        "voices": voices.half(),
        "mouths": torch.stack([group.amax(dim=0) for group in groups]).to(torch.uint8),
        "boxes": torch.from_numpy(clip.face_boxes),
        "pictures": torch.from_numpy(clip.frames[[0, shape.offset + shape.motion - 1]]),
        "openings": torch.from_numpy(np.ascontiguousarray(clip.openings[:, window])).half(),
    }
    return facts, {name: tensor.contiguous() for name, tensor in tensors.items()}


def write_shard(
    out: Path,
    codec: WanCodec,
    hearing: AudioEncoder,
    seeds: Sequence[int],
    split: Split,
    *,
    speak: Speak = say,
    shape_of: Callable[[int, Split], ClipShape] = plan,
) -> bool:
    """Encode the clips of `seeds` into one shard of `out`; return whether there was anything to do.

    Raises ValueError if a shard that begins with the same seed has other seeds.
    """
    name = f"{split}-{seeds[0]:09d}"
    listing = out / f"{name}.json"
    if listing.exists():
        if [row["seed"] for row in json.loads(listing.read_text("utf-8"))] != list(seeds):
            raise ValueError(f"{listing} holds other seeds; give ranges that begin and end where it does")
        return False
    rows: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for seed in seeds:
        facts, parts = encode_clip(codec, hearing, seed, shape_of(seed, split), split, speak)
        rows.append(asdict(facts))
        tensors |= {f"{seed}.{key}": tensor for key, tensor in parts.items()}
    part = out / f"{name}.part"
    save_file(tensors, part)
    part.replace(out / f"{name}.safetensors")
    part.write_text(json.dumps(rows, indent=1), "utf-8")
    part.replace(listing)
    return True


class Samples:
    """The encoded clips of a split in a folder; tensors are read on access."""

    def __init__(self, folder: Path, split: Split) -> None:
        self.facts: list[Facts] = []
        self._files: list[Any] = []
        for listing in sorted(folder.glob(f"{split}-*.json")):
            file = safe_open(listing.with_suffix(".safetensors"), "pt")
            for row in json.loads(listing.read_text("utf-8")):
                row["plan"]["size"] = tuple(row["plan"]["size"])
                row |= {"plan": ClipShape(**row["plan"]), "silent": tuple(row["silent"]), "skins": tuple(row["skins"])}
                self.facts.append(Facts(**row))
                self._files.append(file)

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: int) -> Sample:
        facts, file = self.facts[index], self._files[index]
        tensors = {key: file.get_tensor(f"{facts.seed}.{key}") for key in _TENSORS}
        return Sample(facts, **{key: t.float() if t.is_floating_point() else t for key, t in tensors.items()})

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


def prepare(out: Path, vae_at: Path, audio_at: Path) -> tuple[WanCodec, AudioEncoder]:
    """Copy both encoders to `out` in the layout in which they ship, and return them as the engine runs them.

    `vae_at` and `audio_at` are folders, or checkpoints of the trainings, whose latents are then measured. Once they
    are in `out` they stay: latents of two autoencoders must not mix. Raises ValueError for others than those there.
    """
    out.mkdir(parents=True, exist_ok=True)
    origin = out / "encoders.json"
    # A decoder may be trained further: only the encoder determines what latents mean.
    fingerprints = {"vae": _fingerprint(vae_at, "encoder.", "quant_conv."), "audio_encoder": _fingerprint(audio_at)}
    if origin.exists():
        if json.loads(origin.read_text("utf-8")) != fingerprints:
            raise ValueError(f"{out} was encoded by other encoders; choose another folder")
    else:
        _finished_vae(vae_at, out / "vae")
        _finished_audio(audio_at, out / "audio_encoder")
        origin.write_text(json.dumps(fingerprints, indent=1) + "\n", "utf-8")
    codec = WanCodec(AutoencoderKLWan.from_pretrained(out / "vae", torch_dtype=torch.float32).train(False))
    hearing = Wav2Vec2Model.from_pretrained(out / "audio_encoder", dtype=torch.float32).train(False)
    return codec, AudioEncoder(hearing)


def _finished_vae(at: Path, folder: Path) -> None:
    if at.is_dir():
        shutil.copytree(at, folder, dirs_exist_ok=True)
        return
    model = AutoencoderKLWan(**vae.CONFIG)
    model.load_state_dict(torch.load(at, weights_only=True)["average"])
    sizes = vae.SIZES
    clips = [make_clip(1_000_000 + i, frames=vae.FRAMES, size=sizes[i % len(sizes)]) for i in range(24)]
    vae.finish(model.train(False), clips, folder)


def _finished_audio(at: Path, folder: Path) -> None:
    if at.is_dir():
        shutil.copytree(at, folder, dirs_exist_ok=True)
        return
    model = audio.Regressor()
    model.load_state_dict(torch.load(at, weights_only=True)["model"])
    model.encoder.train(False).half().save_pretrained(folder)


def _fingerprint(at: Path, *parts: str) -> str:
    """Hash a checkpoint; of a model's folder its config and weights, or those whose names begin with one of `parts`."""
    digest = hashlib.sha256()
    if not at.is_dir():
        digest.update(at.read_bytes())
        return digest.hexdigest()
    # Keys with an underscore state where and by which version the model was saved.
    config = json.loads((at / "config.json").read_text("utf-8"))
    digest.update(json.dumps({key: value for key, value in config.items() if key[0] != "_"}, sort_keys=True).encode())
    for file in sorted(at.glob("*.safetensors")):
        for name, tensor in sorted(load_file(file).items()):
            if name.startswith(parts or ("",)):
                digest.update(name.encode())
                # Averaging constant weights turns -0.0 into 0.0.
                digest.update((tensor + 0).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _padded(tensor: Tensor, frames: int) -> Tensor:
    return F.pad(tensor, (0, 0, 0, 0, 0, frames - tensor.shape[1]))


def main() -> None:
    """Read the command line and encode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, required=True, help="finished folder, or vae.pt")
    parser.add_argument("--audio", type=Path, required=True, help="finished folder, or audio.pt")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 800), metavar=("FIRST", "END"))
    parser.add_argument("--split", choices=("train", "held_out"), default="train")
    parser.add_argument("--threads", type=int, default=1, help="rather start several processes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    codec, hearing = prepare(arguments.out, arguments.vae, arguments.audio)
    began, base = time.monotonic(), HELD_OUT if arguments.split == "held_out" else 0
    start, end = arguments.seeds
    for first in range(start, end, SHARD):
        seeds = [base + seed for seed in range(first, min(first + SHARD, end))]
        if write_shard(arguments.out, codec, hearing, seeds, arguments.split):
            print(json.dumps({"until": seeds[-1] - base + 1, "seconds": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
