"""Prompts: the negative prompt of the published demos. Cleaning and encoding are the engine's `TextEncoder`.

The encoder's features of a prompt's own tokens are enough: `AvatarTransformer3DModel.embed_conditions` adds the padded
rows after the text layers, where the public code multiplies them by zero.
"""

from __future__ import annotations

#: Wan's negative prompt after "Close-up": pictures of a whole person are wanted.
NEGATIVE_PROMPT = (
    "Close-up, Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn "
    "hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, "
    "three legs, many people in the background, walking backwards"
)
#: Rows of a text, padded ones included.
TEXT_LEN = 512
