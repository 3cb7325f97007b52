"""Where the published repositories keep each component."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigError, SourceError
from engine.loading.diffusers_folder import component_files
from engine.loading.layout import ComponentLayout, part_in
from engine.text.names import is_plain
from plugins.families.longcat.versions import version

#: Repositories of the versions, and the one with the text encoder, its tokenizer and the video autoencoder of both.
REPOSITORIES = {"1.0": "LongCat-Video-Avatar", "1.5": "LongCat-Video-Avatar-1.5"}
BASE_REPOSITORY = "LongCat-Video"
#: Names of weight files, before ".safetensors" or its shards: dense, and int8.
STEMS = ("diffusion_pytorch_model", "quantized_model")
#: The parts of a model.
PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "audio_encoder")


@dataclass(frozen=True)
class AvatarFolders:
    """The folders and files of a model; all exist."""

    #: A folder with config.json and weights, whose format is int8 if `int8`.
    transformer: Path
    int8: bool
    #: The distillation, to be applied to `transformer`; None: not used.
    lora: Path | None
    audio_encoder: Path
    text_encoder: Path
    tokenizer: Path
    vae: Path


def find_folders(
    root: Path, name: str, *, speakers: int = 1, int8: bool = False, distilled: bool = True
) -> tuple[AvatarFolders | None, tuple[str, ...]]:
    """Find the components of version `name` below `root`; also return the missing files, as relative paths.

    Repositories may lie in `root` itself, or each in a folder of its own name. 1.0 has one network for a single speaker
    and one for two, no int8 and no distillation; 1.5 has one for all. Raises ConfigError for a choice that is not
    published, and SourceError for an index that cannot be read.
    """
    known = version(name)
    if name == "1.0" and (int8 or distilled):
        raise ConfigError(
            "no int8 weights and no distillation of 1.0 are published",
            field="quant" if int8 else "lora",
            hint="use version 1.5, or neither of the two",
        )
    if name == "1.0":
        transformer, audio = ("avatar_single" if speakers == 1 else "avatar_multi"), "chinese-wav2vec2-base"
    else:
        transformer, audio = ("base_model_int8" if int8 else "base_model"), "whisper-large-v3"
    own, base = REPOSITORIES[known.name], BASE_REPOSITORY
    found = AvatarFolders(
        transformer=_place(root, own, transformer),
        int8=int8,
        lora=_place(root, own, "lora") / "dmd_lora.safetensors" if distilled else None,
        audio_encoder=_place(root, own, audio),
        text_encoder=_place(root, base, "text_encoder"),
        tokenizer=_place(root, base, "tokenizer"),
        vae=_place(root, base, "vae"),
    )
    missing = tuple(str(path.relative_to(root)) for path in _needed(found) if not _present(path))
    return (None if missing else found), missing


def find_parts(
    root: Path, name: str, *, int8: bool = False, network: str = ""
) -> tuple[dict[str, ComponentLayout], tuple[str, ...]]:
    """Find the parts of version `name` below `root`, and the missing files as relative paths.

    They are in the published folders (`find_folders`), or in folders named as the parts. `network`: the folder of the
    transformer where a version has several, "avatar_single" (default) or "avatar_multi". Raises SourceError.
    """
    if any((root / "transformer" / file).is_file() for file in ("config.json", "diffusion_pytorch_model.safetensors")):
        places = {part: root / part for part in PARTS}
        missing = tuple(str(path.relative_to(root)) for path in _own_files(places, int8) if not _present(path))
    else:
        found, missing = find_folders(
            root, name, speakers=2 if network == "avatar_multi" else 1, int8=int8, distilled=False
        )
        if found is None:
            return {}, missing
        places = {part: getattr(found, part) for part in PARTS}
    if missing:
        return {}, missing
    parts = {part: part_in(place, part) for part, place in places.items()}
    stem = STEMS[1] if int8 else STEMS[0]
    files = tuple(weight_files(places["transformer"], stem))
    return {**parts, "transformer": ComponentLayout("diffusers", places["transformer"], files)}, ()


def _own_files(places: Mapping[str, Path], int8: bool) -> Iterator[Path]:
    for part, place in places.items():
        if part == "transformer":
            yield place / "config.json"
            yield from weight_files(place, STEMS[1] if int8 else STEMS[0])
        else:
            yield from component_files(place, part)


def _place(root: Path, repository: str, name: str) -> Path:
    below = root / repository / name
    return below if below.is_dir() else root / name


def _present(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _needed(folders: AvatarFolders) -> Iterator[Path]:
    yield folders.transformer / "config.json"
    yield from weight_files(folders.transformer, STEMS[1] if folders.int8 else STEMS[0])
    if folders.lora is not None:
        yield folders.lora
    for folder in (folders.audio_encoder, folders.text_encoder, folders.vae):
        yield folder / "config.json"
    yield from weight_files(folders.text_encoder, "model")
    yield from weight_files(folders.vae, STEMS[0])
    # Published as a pickle (1.0), or as safetensors (1.5).
    pickled = folders.audio_encoder / "pytorch_model.bin"
    yield pickled if pickled.is_file() else folders.audio_encoder / "model.safetensors"
    yield folders.tokenizer / "tokenizer_config.json"


def weight_files(folder: Path, stem: str) -> list[Path]:
    """Return the weight files, present or not, of a folder whose files begin with `stem`. Raises SourceError."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [folder / f"{stem}.safetensors"]
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise SourceError(f"{index} cannot be read", field="source", hint="get this file again") from error
    if not all(isinstance(shard, str) and is_plain(shard) for shard in shards):
        raise SourceError(f"{index} names a file outside its folder", field="source", hint="get this file again")
    return [folder / shard for shard in shards]
