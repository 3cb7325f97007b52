"""The text and the image encoder at their full sizes."""

from __future__ import annotations

from typing import Any

import torch

from engine.bench.device.measure import DeviceBench, Rows
from engine.bench.device.modules import image_encoder, text_encoder, weight_bytes
from engine.network.image import ImageEncoder
from engine.planning.activations import image_bytes, text_bytes


def encoders(bench: DeviceBench) -> Rows:
    """Encode a prompt of full length with umT5, and a picture with CLIP."""
    yield "image", bench.attempt(lambda: _image(bench))
    yield "text", bench.attempt(lambda: _text(bench))


def _image(bench: DeviceBench) -> dict[str, Any]:
    model = image_encoder(bench)
    _, height, width = bench.shapes.video
    pixels = bench.noise(3, height, width, dtype=torch.float32).clamp(-1, 1)
    encoder = ImageEncoder(model)
    predicted = image_bytes(bench.shapes.configs["image_encoder"], value=2)
    return _encode(bench, model, lambda: encoder.encode(pixels), predicted)


def _text(bench: DeviceBench) -> dict[str, Any]:
    model, config, length = text_encoder(bench), bench.shapes.configs["text_encoder"], bench.shapes.text_tokens
    tokens = torch.randint(2, config["vocab_size"], (1, length), device=bench.device)
    mask = torch.ones_like(tokens)
    predicted = text_bytes(config, length, value=2)
    return _encode(bench, model, lambda: model(input_ids=tokens, attention_mask=mask).last_hidden_state, predicted)


def _encode(bench: DeviceBench, model: Any, call: Any, predicted: int) -> dict[str, Any]:
    output = call()
    return {
        **bench.with_peak(call),
        "predicted_bytes": predicted,
        "weight_bytes": weight_bytes(model),
        "finite": bool(torch.isfinite(output).all()),
    }
