"""Commands that download the weights that a config does not find, and the size of each download."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.hub.manifest import Manifest, read_manifest
from engine.text.amounts import amount

#: Default folder of downloads, unless $MODEL_PATH or --model-path is set: the volume of a RunPod worker.
ROOT = "/runpod-volume/models"


def models_path() -> Path:
    """Return the folder of all models, the default of `multitalk models`."""
    return Path(os.environ.get("MODEL_PATH") or ROOT)


def offers(
    words: Mapping[str, str], into: Path | None = None, manifest: Manifest | None = None
) -> tuple[tuple[str, str], ...]:
    """Return pairs (command, note on its size and use) for a config with `words`; empty if the model is not published.

    `words` are the config's "model", "model.folder", "quant" and "resolution"; `into` is the folder of all models,
    None for the default one.
    """
    path = "" if into is None or into == models_path() else f" --model-path {shlex.quote(str(into))}"
    commands = []
    for preset in (manifest or read_manifest()).offers(words["model"], words["quant"], words["model.folder"]):
        size = amount(preset.size) if preset.exact else f"about {amount(preset.size)}"
        add = " ".join(f"{key}={value}" for key, value in preset.words.items() if _differs(key, value, words))
        commands.append(
            (f"multitalk models pull --preset {preset.name}{path}", f"{size}, used with {add}" if add else size)
        )
    return tuple(commands)


def _differs(key: str, value: str, words: Mapping[str, str]) -> bool:
    # A quantisation while loading reads the same files.
    return words.get(key) != value and not (key == "quant" and value == "none")
