"""Checks of the network's sizes, with errors that name the argument."""

from __future__ import annotations

from engine.errors import ConfigError


def check_config(hidden_size: int, heads: int, patch: tuple[int, ...], audio_window: int) -> None:
    """Raise ConfigError if the network cannot be built with these sizes."""
    rules = (
        (hidden_size % heads == 0, "hidden_size", f"must be a multiple of num_heads, {heads}"),
        ((hidden_size // heads) % 2 == 0 and hidden_size // heads >= 6, "num_heads", "heads need 6 or more channels"),
        (len(patch) == 3 and patch[0] == 1, "patch_size", "must be (1, height, width)"),
        (audio_window % 2 == 1, "audio_window", "must be odd: the middle is the frame itself"),
    )
    for holds, field, hint in rules:
        if not holds:
            raise ConfigError("the transformer cannot be built with this config", field=field, hint=hint)
