"""What the hub publishes for a preset of the manifest, at a small size: every file under its published name."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from hub_server import COMMIT, HubServer, hub_server
from original_folder import CONFIG, random_state, small_transformer, write_original
from safetensors.torch import save
from torch import Tensor

from engine.hub.manifest import Manifest, Preset
from scripts.evaluate_tiny.quantised_folder import as_quanto

ROOT = Path(__file__).parents[2]
_LINEAR = re.compile(r"(blocks\.\d+\.(?:self_attn|attn|ffn)\.\w+(?:\.0)?)\.weight")


def content(preset: Preset, small: Path) -> dict[str, dict[str, bytes]]:
    """Return the files of an int8 preset by repository and path; `small` is what `write_original` wrote."""
    wan = small / "Wan2.1-I2V-14B-480P"
    text: dict[str, Tensor] = torch.load(wan / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    found: dict[str, dict[str, bytes]] = {}
    for file in preset.files:
        name = Path(file.path).name
        if file.part.endswith("int8"):
            state = text if file.part.startswith("umt5") else small_transformer()
            modules = [match[1] for key in state if (match := _LINEAR.fullmatch(key)) and state[key].ndim == 2]
            if name.endswith(".json"):
                told = json.dumps({module: {"weights": "qint8", "activations": "none"} for module in modules}).encode()
            else:
                told = save(as_quanto(state, modules, torch.int8))
        elif file.part.startswith("lora"):
            shapes: dict[str, tuple[int, ...]] = {
                "blocks.0.self_attn.q.lora_down.weight": (3, 24),
                "blocks.0.self_attn.q.lora_up.weight": (24, 3),
            }
            told = save({f"diffusion_model.{key}": value for key, value in random_state(shapes).items()})
        elif file.part == "wan-config":
            told = json.dumps(CONFIG).encode()
        else:
            folder = small / "chinese-wav2vec2-base" if file.part == "wav2vec2" else wan
            path = folder / file.path
            # What the tokenizer and the audio encoder of the tests are saved without.
            told = path.read_bytes() if path.is_file() else b"{}"
        found.setdefault(file.repository, {})[file.path] = told
    return found


@contextmanager
def small_hub(names: list[str], folder: Path) -> Iterator[tuple[HubServer, Manifest]]:
    """Serve presets of the real manifest on loopback; yield a manifest of the same places and these sizes."""
    table: dict[str, Any] = yaml.safe_load((ROOT / "engine" / "hub" / "manifest.yaml").read_text("utf-8"))
    real = Manifest(copy.deepcopy(table))
    small = write_original(folder / "small")
    files: dict[str, dict[str, bytes]] = {}
    for name in names:
        for repository, more in content(real.preset(name), small).items():
            files.setdefault(repository, {}).update(more)
    for repository in table["repositories"].values():
        repository["revision"] = COMMIT
    for part in table["parts"].values():
        for file in part["files"]:
            file.pop("sha256", None)
            size = len(files.get(part["repository"], {}).get(file["path"], b""))
            file.pop("size", None)
            file["about"] = size
    with hub_server(files) as server:
        yield server, Manifest(table)
