"""Which files a model's folder in diffusers' layout must have, and which of them are missing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from engine.errors import SourceError
from engine.text.names import is_plain

_HINT = "get this file again, from a place you trust"


def missing_files(root: Path, components: Iterable[str]) -> tuple[str, ...]:
    """Return the files of `components` below `root` that are absent or empty, as relative paths."""
    required = [path for component in components for path in component_files(root / component, component)]
    return tuple(str(path.relative_to(root)) for path in required if not path.is_file() or path.stat().st_size == 0)


def component_files(folder: Path, component: str) -> list[Path]:
    """Return the files that `folder` needs to be `component` in the layout of diffusers and transformers."""
    if component == "tokenizer":
        return [folder / "tokenizer_config.json"]
    return [folder / "config.json", *weight_files(folder, component)]


def weight_files(folder: Path, component: str = "") -> list[Path]:
    """Return the weight files, present or not, that `folder` needs; `component` defaults to the folder's name.

    Raises SourceError for an index that names files outside the folder.
    """
    # diffusers and transformers use two names for the same file; an index decides if there is one.
    stems = ("diffusion_pytorch_model", "model")
    for stem in stems:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            try:
                shards = list(json.loads(index.read_text("utf-8"))["weight_map"].values())
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                return [folder / f"{stem}.safetensors"]
            if not all(map(is_plain, shards)):
                raise SourceError(f"{index} names a file outside its folder", field="source", hint=_HINT)
            return [folder / shard for shard in sorted(set(shards))]
    # transformers' format before safetensors; wav2vec2's main revision has only this.
    names = [f"{stem}.safetensors" for stem in stems] + ["pytorch_model.bin"]
    present = [folder / name for name in names if (folder / name).is_file()]
    if present:
        return present[:1]
    return [folder / names[0 if (component or folder.name) in ("transformer", "vae") else 1]]
