"""The real classes with random weights, created on their device: nothing is read, nothing large is on the host."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.bench.device.measure import DeviceBench
from engine.bench.family import network
from engine.loading import placement
from engine.loading.placement import Profile
from engine.network.precision import kept_in_float32

Config = Mapping[str, Any]


def transformer(bench: DeviceBench, layers: int) -> Any:
    """Build the transformer with `layers` blocks in the bench's dtype, except its float32 parts."""
    config = dict(bench.shapes.configs["transformer"]) | {"num_layers": layers}

    def dtype(name: str) -> torch.dtype:
        return torch.float32 if kept_in_float32(network(), name) else bench.dtype

    model: Any = build(lambda: network()(**config), bench.device, dtype)
    return model


def autoencoder(bench: DeviceBench) -> Any:
    """Build the video autoencoder in float32."""
    from diffusers import AutoencoderKLWan

    # diffusers concatenates these lists with its own lists.
    config = {key: list(value) if isinstance(value, tuple) else value for key, value in vae_config(bench).items()}
    return build(lambda: AutoencoderKLWan(**config), bench.device, lambda _: torch.float32)


def vae_config(bench: DeviceBench) -> Config:
    """Return the config of the video autoencoder."""
    return bench.shapes.configs["vae"]


def text_encoder(bench: DeviceBench) -> Any:
    """Build the text encoder in the bench's dtype."""
    from transformers import UMT5Config, UMT5EncoderModel

    def make() -> Any:
        model: Any = UMT5EncoderModel(UMT5Config(**bench.shapes.configs["text_encoder"]))
        # Built without weights it has two token tables; its files have one.
        model.set_input_embeddings(model.get_input_embeddings())
        return model

    return build(make, bench.device, lambda _: bench.dtype)


def image_encoder(bench: DeviceBench) -> Any:
    """Build the image encoder in the bench's dtype."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**bench.shapes.configs["image_encoder"])
    return build(lambda: CLIPVisionModel(config), bench.device, lambda _: bench.dtype)


def build(make: Callable[[], Any], device: str, dtype: Callable[[str], torch.dtype]) -> Any:
    """Build a module without weights, and give every parameter random values of `dtype(name)` on `device`."""
    from accelerate import init_empty_weights

    # As in the engine: buffers are in no file, so they are computed.
    with init_empty_weights(include_buffers=False):
        module = make()
    empty = list(module.named_parameters(remove_duplicate=False))
    filled: dict[int, nn.Parameter] = {}
    for name, parameter in empty:
        if id(parameter) not in filled:
            values = torch.empty(parameter.shape, dtype=dtype(name), device=device)
            filled[id(parameter)] = nn.Parameter(_fill(values, name), requires_grad=False)
        owner, _, leaf = name.rpartition(".")
        module.get_submodule(owner)._parameters[leaf] = filled[id(parameter)]
    return module.to(device).eval()


def _fill(values: Tensor, name: str) -> Tensor:
    """Return values that keep the magnitude of activations: norms of one, weights scaled by their inputs."""
    if values.numel() == values.shape[0]:
        return values.zero_() if name.endswith("bias") else values.fill_(1)
    return values.normal_(std=1 / math.sqrt(math.prod(values.shape[1:])))


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters, quantised ones as they are stored."""
    return sum(tensor.nbytes for value in module.parameters() for tensor in _plain_tensors(value))


def _plain_tensors(value: Any) -> list[Tensor]:
    # A torchao tensor reports the size of the dense weight.
    return [value.qdata, value.scale] if hasattr(value, "qdata") else [value]


def stream_blocks(model: Any, device: str) -> None:
    """Place the blocks as `memory=group-offload` does; the only place that uses the engine's names for this."""
    placement.stream_blocks(
        model, device, Profile("group-offload", streams=torch.device(device).type == "cuda")
    ).onload()
