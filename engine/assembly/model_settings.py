"""The keys of a model that decide a video's bytes: stored in its provenance, and restored from it.

Other keys of a model reach the provenance resolved (steps, scales and shift; style and blend; limits of the report), by
a hash (the weights), or change no byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from operator import attrgetter
from typing import Any

from engine.assembly.escape import quoted
from engine.config import Config
from engine.config.model import MadeForConfig

#: Keys of the model.
_VALUES = (
    # One of several files of audio weights in the same folder.
    "adapter",
    "fps",
    "window",
    "whole_windows",
    "negative_prompt",
    # The limit of the config's `continuation.frames` depends on it.
    "continuation.frames",
    # A video may have been made with what its preset refuses.
    *(f"made_for.{field.name}" for field in fields(MadeForConfig)),
)
#: Tables of which only the chosen entry is stored: the config's LoRAs and sizes.
_TABLES = ("loras", "buckets")


def model_settings(config: Config) -> dict[str, Any]:
    """Return the model's keys that decide bytes as plain JSON: its values, chosen LoRAs, and sizes by their ratio."""
    model = config.model
    return {
        **{key: attrgetter(key)(model) for key in _VALUES},
        # As a preset's integer is read back.
        "fps": float(model.fps),
        "loras": [asdict(lora) for lora in model.bundles[config.sampler.bundle].loras],
        "buckets": {key: list(size) for key, size in model.resolutions[config.resolution].buckets.items()},
    }


def model_overrides(settings: Mapping[str, Any], resolution: str, bundle: str) -> Iterator[str]:
    """Yield the overrides that restore what `model_settings` returned. Sizes that no override can name are left out.

    Raises ValueError for settings that are not of its form.
    """
    for key, value in settings.items():
        if key not in (*_VALUES, *_TABLES):
            raise ValueError(f"model_settings.{key} is not a setting of a model")
        if key in _VALUES:
            yield f"model.{key}={_word(key, value)}"
    if "loras" in settings:
        entries = (
            f"{{file:{quoted('loras', str(lora['file']))},scale:{json.dumps(lora['scale'])}}}"
            for lora in settings["loras"]
        )
        yield f"model.{_name(bundle)}.loras=[{','.join(entries)}]"
    for key, size in settings.get("buckets", {}).items():
        # A key such as "0.60" is a preset's to write, and so is "480p" before it.
        if key.isdigit() and resolution.isidentifier():
            yield f"++model.resolutions.{resolution}.buckets.{key}={json.dumps(size)}"


def other_settings(settings: Mapping[str, Any], config: Config) -> Iterator[str]:
    """Yield a sentence for each stored key that `config` has otherwise."""
    now = model_settings(config)
    for key, value in settings.items():
        if now.get(key) != value:
            names = {"buckets": f"resolutions.{config.resolution}.buckets", "loras": f"{config.sampler.bundle}.loras"}
            name = f"model.{names.get(key, key)}"
            before, after = (_short(part) for part in (value, now.get(key)))
            yield f"its {name} was {before}, and the preset model={config.model.name} has {after}"


def _word(key: str, value: Any) -> str:
    if isinstance(value, str):
        return quoted(key, value)
    if isinstance(value, list):
        return f"[{','.join(_word(key, part) for part in value)}]"
    if value is None or isinstance(value, Mapping):
        raise ValueError(f"model_settings.{key} is not a value")
    return json.dumps(value)


def _name(bundle: str) -> str:
    if not re.fullmatch(r"\w+", bundle):
        raise ValueError(f"{bundle!r} is not the name of a bundle")
    return bundle


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
