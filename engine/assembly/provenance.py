"""The provenance stored in a video: the settings that determine its frames, and nothing private."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from engine.assembly.kernels import uses_triton
from engine.assembly.model_settings import model_settings
from engine.assembly.sampling import sampler_config
from engine.config import Config
from engine.data import Cue, Media, Request
from engine.files.checksums import sha256_of
from engine.plugin.manager import installed

FORMAT = 1

#: Packages whose version can change the frames or their encoding.
PACKAGES = ("multitalk-engine", "torch", "diffusers", "transformers", "numpy", "pillow", "av", "soxr")

#: Parts of the config that determine the frames.
DECISIVE = ("resolution", "quant", "sampler", "guidance", "cache", "lora", "continuation", "video")

#: Parts that determine which windows are made again, and the report that is stored beside this. Older videos have none.
JUDGING = ("report", "retake")


@dataclass(frozen=True)
class Runtime:
    """Device, dtype and kernel of this process, and its process group."""

    device: str
    dtype: str
    #: Name of the attention kernel in diffusers' dispatcher.
    attention: str
    #: Number format in which the VAE decodes.
    decode_dtype: str
    #: Number of processes in the group, including this one.
    processes: int
    #: Number of those among which the tokens of a forward are divided.
    divided: int
    #: Whether this process follows another one, and so needs only the transformer.
    alone: bool


def make_provenance(
    request: Request, media: Media, config: Config, *, weights: str, runtime: Runtime
) -> dict[str, Any]:
    """Return the provenance as plain JSON values. It contains no address, path, host name or date.

    `weights` is the hash of the weights (`weights_hash`). Imports torch.
    """
    import torch

    return {
        "format": FORMAT,
        "model": config.model.name,
        "model_settings": model_settings(config),
        **{key: _plain(getattr(config, key)) for key in DECISIVE},
        "sampler": _plain(sampler_config(config, installed())),
        # The only setting of the memory profile that changes frames.
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
                    # Integers become floats, so that a repeated video stores the same text.
                    "box": [float(edge) for edge in speaker.region.box] if speaker.region.box else None,
                    "mask": speaker.region.mask is not None,
                    # Only requested keys, so that the provenance of other videos does not change.
                    **({} if cut is None else dict(cut.asked)),
                }
                for speaker, cut in zip(request.speakers, media.cuts, strict=True)
            ],
            **_dialogue(request),
            **_timeline(request),
        },
        "inputs": {**input_hashes(media), **recording_hash(request)},
        "weights": weights,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "processes": runtime.processes,
        "device": runtime.device,
        "dtype": runtime.dtype,
        "decode_dtype": runtime.decode_dtype,
        "attention": runtime.attention,
        # Left out if nothing is chosen, so that the provenance of other videos does not change.
        **({} if config.windows == "fixed" else {"windows": config.windows}),
        **({"speech": _plain(config.speech)} if request.script else {}),
        **({"diariser": _plain(config.diariser)} if request.voices else {}),
        **({"vocals": _plain(config.vocals)} if installed().vocals.build(config.vocals).filters else {}),
        **({"dub": _plain(config.dub)} if request.video else {}),
        **({} if (kernels := compiled_by(config)) == "none" else {"compile": kernels}),
        **({} if config.residual_dtype == "float32" else {"residual_dtype": config.residual_dtype}),
        **({} if runtime.device == "cpu" else {"kernels": norms_by(config, runtime.device)}),
        **{key: _plain(getattr(config, key)) for key in JUDGING},
    }


def _timeline(request: Request) -> dict[str, Any]:
    # Only if requested, so that the provenance of other videos does not change.
    prompts = [{**_begin(cue), "text": cue.value} for cue in request.prompts]
    images = [_begin(cue) for cue in request.images]
    video = {"video": True} if request.video else {}
    heard = {"soundtrack": True} if request.soundtrack else {}
    return {**({"prompts": prompts} if prompts else {}), **({"images": images} if images else {}), **video, **heard}


def _dialogue(request: Request) -> dict[str, Any]:
    if request.script:
        # As `again` passes it on: a text with a line break is no file.
        return {"script": request.script.rstrip() + "\n"}
    return {"people": request.people} if request.voices else {}


def recording_hash(request: Request) -> dict[str, str]:
    """Return the SHA-256 of the recording that the voices come from, if there is one."""
    recording = None if request.made is None else request.made.recording
    return {} if recording is None else {"recording": sha256_of(recording)}


def _begin(cue: Cue) -> dict[str, Any]:
    return {"from": float(cue.seconds or 0)} if cue.frame is None else {"from_frame": cue.frame}


def groups_of(provenance: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the groups of the config that a video's provenance has, or should have."""
    return (*DECISIVE, *(group for group in (*JUDGING, "dub", "speech", "diariser", "vocals") if group in provenance))


def compiled_by(config: Config) -> str:
    """Return the backend that compiled the network; "none" if nothing is compiled. The last bits depend on it."""
    return "none" if config.compile.name == "none" else config.compile.backend


def norms_by(config: Config, device: str) -> str:
    """Return what computes norms and rotations on `device`, "triton" or "eager". The last bits depend on it."""
    return "triton" if uses_triton(config, device) else "eager"


def input_hashes(media: Media) -> dict[str, Any]:
    """Return the SHA-256 of each input file; a source video's is that of the image."""
    return {
        "image": sha256_of(media.image if media.source is None else media.source.path),
        "voices": [sha256_of(path) if path else None for path in media.voices],
        "masks": [sha256_of(path) if path else None for path in media.masks],
        **({"images": [sha256_of(path) for path in media.images]} if media.images else {}),
        **({} if media.soundtrack is None else {"soundtrack": sha256_of(media.soundtrack[0])}),
    }


def weights_hash(folder: Path) -> str:
    """Return a hash that identifies a set of weights without reading all of it.

    It covers names and sizes of all weight files and configs, the full content of configs, and the header and the last
    mebibyte of each weight file.
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
            # Only safetensors files start with the length of their header.
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
    # Cached: reading a file of each package takes 50 ms, which each job would pay.
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
