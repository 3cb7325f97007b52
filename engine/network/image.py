"""Picture -> image features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Mean and standard deviation of CLIP's training pictures, 0 .. 1 (OpenAI CLIP, clip.py).
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(pixels: Tensor, side: int) -> Tensor:
    """Resize (3, H, W), float32 -1 .. 1, to CLIP's normalised (1, 3, side, side).

    Bicubic without antialiasing and without keeping the aspect ratio, as in the public implementation; transformers'
    own preprocessing crops.
    """
    square = F.interpolate(pixels[None].float(), size=(side, side), mode="bicubic", align_corners=False)
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return (square * 0.5 + 0.5 - mean) / std


class ImageEncoder:
    """CLIP's vision tower (transformers' CLIPVisionModel): all tokens after the second last layer."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.side = int(model.config.image_size)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the features of a picture (3, H, W), float32 -1 .. 1: (1, tokens, dim), in the model's dtype."""
        parameter = next(self.model.parameters())
        inputs = clip_pixels(pixels.to(parameter.device), self.side).to(parameter.dtype)
        features: Tensor = self.model(pixel_values=inputs, output_hidden_states=True).hidden_states[-2]
        return features
