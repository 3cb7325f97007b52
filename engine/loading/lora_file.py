"""The header of a LoRA file: entries, shapes, and statements about alpha. Imports no torch."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from engine.errors import SourceError
from engine.loading.file_kinds import what_is
from engine.loading.lora_alpha import StatedAlpha, alphas_in_config, alphas_in_header

#: PEFT's names of the file with an adapter's training settings, and of the adapter file (without suffix).
CONFIG = "adapter_config.json"
_PEFT_STEM = "adapter_model"
_CONFIG_BYTES = 2**20

#: Formats of scalars for `struct`; bfloat16 is the upper half of a float32.
_SCALARS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


@dataclass(frozen=True)
class LoraFile:
    """The content of a LoRA file's header."""

    path: Path
    #: Shapes of the entries by name, in the file's order.
    shapes: Mapping[str, tuple[int, ...]]
    #: Values of the alpha entries, by name.
    alphas: Mapping[str, float] = field(default_factory=dict)
    #: Statements about alpha in header and adapter_config.json.
    stated: tuple[StatedAlpha, ...] = ()
    warnings: tuple[str, ...] = ()


def read_lora_header(path: Path) -> LoraFile:
    """Read the header of a LoRA file, and adapter_config.json beside it. Raises SourceError.

    For a file of another format the error names the format. Files that could contain code are not loaded.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise SourceError(f"no LoRA file {path}", field="lora", hint=_absent(path))
    try:
        # Opening checks the length of the file against its header.
        with safe_open(path, "np"):
            pass
        size, header = _header(path)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    metadata = {str(key): str(value) for key, value in (header.pop("__metadata__", None) or {}).items()}
    shapes: dict[str, tuple[int, ...]] = {key: tuple(entry["shape"]) for key, entry in header.items()}
    alphas = {}
    with path.open("rb") as file:
        for key, entry in header.items():
            if key.endswith(".alpha"):
                if prod(entry["shape"]) != 1:
                    raise SourceError(f"{path}: {key} is not a single number", field="lora", hint="get this file again")
                file.seek(8 + size + entry["data_offsets"][0])
                alphas[key] = _scalar(
                    file.read(entry["data_offsets"][1] - entry["data_offsets"][0]), entry["dtype"], key
                )
    stated = alphas_in_header(metadata)
    config, warnings = _config(path, shapes)
    return LoraFile(path, shapes, alphas, (*stated, *config), warnings)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return size, json.loads(file.read(size))


def _scalar(data: bytes, dtype: str, key: str) -> float:
    if dtype == "BF16":
        return float(struct.unpack("<f", b"\0\0" + data)[0])
    if dtype not in _SCALARS:
        raise SourceError(f"{key} is stored as {dtype}", field="lora", hint="alpha must be an ordinary number")
    return float(struct.unpack(_SCALARS[dtype], data)[0])


def _config(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[list[StatedAlpha], tuple[str, ...]]:
    """Return the statements of adapter_config.json beside `path` and warnings, if that file belongs to `path`."""
    beside = path.parent / CONFIG
    if not beside.is_file():
        return [], ()
    others = [
        other.name
        for other in sorted(path.parent.iterdir())
        if other.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt") and other.name != path.name
    ]
    owned = path.stem == _PEFT_STEM or not others
    if not owned and any(Path(other).stem == _PEFT_STEM for other in others):
        # The config belongs to that file.
        return [], ()
    try:
        if beside.stat().st_size > _CONFIG_BYTES:
            raise SourceError(f"{beside} has over {_CONFIG_BYTES} bytes", field="lora", hint="get the file again")
        stated = alphas_in_config(beside.read_text("utf-8"), CONFIG)
    except (OSError, ValueError) as error:
        raise SourceError(f"{beside} cannot be read: {error}", field="lora", hint="get the file again") from error
    if owned:
        return stated, ()
    ranks = {shape[0] for key, shape in shapes.items() if shape and ("lora_A" in key or "lora_down" in key)}
    fitting = [alpha for alpha in stated if alpha.rank is None or alpha.ranks or ranks == {alpha.rank}]
    if not fitting:
        return [], ()
    warning = (
        f"{CONFIG} beside {path.name} is used for it, although {others[0]} is there, too: "
        "put each LoRA with such a file into its own folder"
    )
    return fitting, (warning,)


def _absent(path: Path) -> str:
    if not path.is_dir():
        return "the path is relative to the weights folder"
    inside = [f"{path.name}/{file.name}" for file in sorted(path.glob("*.safetensors"))]
    return f"it is a folder; name a file in it, such as {inside[0]}" if inside else "it is a folder without such a file"


def _unreadable(path: Path, error: Exception) -> SourceError:
    """Return the error for a damaged file, or for one of another format, which it names."""
    kind, hint = what_is(path) or _other_kind(path)
    if not kind:
        return SourceError(f"{path} is damaged: {error}", field="lora", hint="get this file again")
    if "PyTorch" in kind:
        hint = (
            'if you trust it, convert it: python -c "import sys, torch, safetensors.torch as s; '
            's.save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])" '
            f"{path.name} {path.stem}.safetensors"
        )
    elif "GGUF" in kind:
        hint = "use the .safetensors file of the LoRA"
    return SourceError(f"{path} is {kind}, not a .safetensors file", field="lora", hint=hint)


def _other_kind(path: Path) -> tuple[str, str]:
    """Return the kind of a file that `what_is` does not know, and a hint; two empty texts if it is unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError:
        return "", ""
    if not head:
        return "empty", "get this file again"
    if head.lstrip().startswith((b"{", b"[")):
        return "a JSON text", "the server sent something else: download it again, perhaps with a token"
    return "", ""
