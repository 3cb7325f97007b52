"""What gets the weights that a config does not find: commands, and what each of them brings."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from engine.hub.manifest import Manifest, read_manifest
from engine.text.amounts import amount

#: Where presets are pulled to unless $MODEL_PATH or --model-path says otherwise: the volume of a RunPod worker.
ROOT = "/runpod-volume/models"


def models_path() -> Path:
    """Return the folder of all models that `multitalk models` works on by default."""
    return Path(os.environ.get("MODEL_PATH") or ROOT)


def offers(
    words: Mapping[str, str], into: Path | None = None, manifest: Manifest | None = None
) -> tuple[tuple[str, str], ...]:
    """Return (command, what it brings) for a config that says `words`; none for a model that is not published.

    `words` are the config's "model", "model.folder", "quant" and "resolution"; `into` is the folder of all models,
    None for the default one.
    """
    path = "" if into is None or into == models_path() else f" --model-path {shlex.quote(str(into))}"
    found = []
    for preset in (manifest or read_manifest()).offers(words["model"], words["quant"], words["model.folder"]):
        size = amount(preset.size) if preset.exact else f"about {amount(preset.size)}"
        add = " ".join(f"{key}={value}" for key, value in preset.words.items() if _differs(key, value, words))
        found.append(
            (f"multitalk models pull --preset {preset.name}{path}", f"{size}, used with {add}" if add else size)
        )
    return tuple(found)


def _differs(key: str, value: str, words: Mapping[str, str]) -> bool:
    # Quantised while it is loaded: the same files.
    return words.get(key) != value and not (key == "quant" and value == "none")
