"""Presets of LongCat in miniature, for `longcat_folder`'s weights: windows of 13 frames, and small pictures."""

from __future__ import annotations

from typing import Any

#: Preset of the tests -> the published one whose values it takes, and the folder of its weights.
PRESETS = {
    "longcat-mini": ("longcat", "longcat-1.5"),
    "longcat-guided-mini": ("longcat-guided", "longcat-1.5"),
    "longcat-1.0-mini": ("longcat-1.0", "longcat-1.0"),
    "longcat-1.0-two-mini": ("longcat-1.0-two", "longcat-1.0"),
}


def store_presets() -> None:
    """Store the presets in Hydra's ConfigStore."""
    from hydra.core.config_store import ConfigStore

    for name, (published, folder) in PRESETS.items():
        small = {"shift": 7.0, "buckets": {"1.00": [64, 64], "1.50": [96, 64]}}
        node: dict[str, Any] = {
            "defaults": [published, "_self_"],
            "name": name,
            "folder": folder,
            "window": 13,
            "resolution": "small",
            "resolutions": {"small": small},
            "continuation": {"frames": 5},
        }
        ConfigStore.instance().store(group="model", name=name, node=node)
