"""The recipe that a video carries: what decided its frames, and nothing that could identify or leak."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.config import Config
from engine.data import Media, Request
from engine.files.checksums import sha256_of

FORMAT = 1

#: Packages whose version can change the frames or their encoding.
PACKAGES = ("multitalk-engine", "torch", "diffusers", "transformers", "numpy", "pillow", "av", "soxr", "pyloudnorm")

#: Parts of the config that decide the result.
DECISIVE = ("resolution", "quant", "sampler", "guidance", "cache", "lora", "continuation", "video")


@dataclass(frozen=True)
class Runtime:
    """What this process computes with."""

    device: str
    dtype: str
    #: Name of the kernel, as diffusers' dispatch knows it.
    attention: str
    #: Of the group, this one included.
    processes: int
    #: Whether it follows another process, and so needs the transformer alone.
    alone: bool


def make_recipe(request: Request, media: Media, config: Config, *, weights: str, runtime: Runtime) -> dict[str, Any]:
    """Return the recipe as plain JSON values; no address, path, host name or date is in it.

    `weights` is their `weights_hash`. Imports torch.
    """
    import torch

    return {
        "format": FORMAT,
        "model": config.model.name,
        **{key: _plain(getattr(config, key)) for key in DECISIVE},
        # The one thing of the memory profile that changes frames.
        "tile": config.memory.tile,
        "request": {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "frames": request.frames if isinstance(request.frames, int) else None,
            "fps": None if request.fps is None else float(request.fps),
            "audio_type": request.audio_type,
            "timing": request.timing,
            "fit": request.fit,
            "speakers": [
                {
                    "silence": speaker.audio is None,
                    # Whole numbers and fractions as one type, so that a repeated video carries the same text.
                    "box": [float(edge) for edge in speaker.region.box] if speaker.region.box else None,
                    "mask": speaker.region.mask is not None,
                    # Only what was asked, so that other videos carry what they always did.
                    **({} if cut is None else dict(cut.asked)),
                }
                for speaker, cut in zip(request.speakers, media.cuts, strict=True)
            ],
        },
        "inputs": input_hashes(media),
        "weights": weights,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "processes": runtime.processes,
        "device": runtime.device,
        "dtype": runtime.dtype,
        "attention": runtime.attention,
    }


def input_hashes(media: Media) -> dict[str, Any]:
    """Return the SHA-256 of each input file."""
    return {
        "image": sha256_of(media.image),
        "voices": [sha256_of(path) if path else None for path in media.voices],
        "masks": [sha256_of(path) if path else None for path in media.masks],
    }


def weights_hash(folder: Path) -> str:
    """Return a hash that tells one set of weights from another without reading all of it.

    It covers the names and sizes of all weight files and configs, the headers of the former and the whole of the
    latter, and one mebibyte from the end of each weight file.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".safetensors", ".json", ".pth", ".bin", ".gguf") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".json":
                digest.update(file.read())
                continue
            # Other formats have no header of a length that is told first.
            head = file.read(8) if path.suffix == ".safetensors" else b""
            digest.update(head + file.read(min(int.from_bytes(head, "little") if head else 2**20, size)))
            file.seek(max(8, size - 2**20))
            digest.update(file.read(2**20))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of the packages that can change the result."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    # Reads a file of each package: fifty milliseconds that each job would pay.
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
