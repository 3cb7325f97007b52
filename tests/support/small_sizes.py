"""The published sizes of all parts, and the same parts as small as their constructors let them be."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

PUBLISHED = json.loads((files("engine.planning") / "architectures" / "wan-14b.json").read_text("utf-8"))
#: The same parts, as small as their constructors let them be.
SMALL: dict[str, dict[str, Any]] = {
    "transformer": PUBLISHED["transformer"]
    | {"num_attention_heads": 1, "attention_head_dim": 128, "ffn_dim": 64, "num_layers": 2},
    "vae": PUBLISHED["vae"] | {"base_dim": 4},
    "text_encoder": PUBLISHED["text_encoder"] | {"vocab_size": 100, "d_ff": 32, "num_layers": 1, "num_heads": 1},
    "image_encoder": PUBLISHED["image_encoder"] | {"num_hidden_layers": 1},
    "audio_encoder": PUBLISHED["audio_encoder"],
}
