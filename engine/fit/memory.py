"""Which weights are where in each stage, by the memory profile, and what the stage holds beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.errors import UnknownComponent
from engine.estimates import StageMemory
from engine.fit import activations
from engine.fit.sizes import Sizes

PROFILES = ("none", "model-offload", "group-offload")
#: Bytes of one value of a quantised weight.
QUANTS: Mapping[str, float | None] = {"none": None, "int8": 1.0}
WIDTHS = {"float32": 4, "bfloat16": 2}
#: Of a GPU: CUDA's context and its libraries' own workspaces.
CONTEXT = 800 * 2**20
#: Share of temporary tensors that is lost between them in a GPU's allocator; an assumption.
FRAGMENTED = 0.1
#: The same of the host, and what every process takes for compiled kernels and for encoding the video. Both were fitted
#: to one run of `multitalk bench plan`, that of the case "base".
HOST_FRAGMENTED = 0.3
PROCESS = 40 * 10**6

_ON_DEVICE = ("transformer", "vae", "text_encoder", "image_encoder")


@dataclass(frozen=True)
class Load:
    """How the weights are kept."""

    device: str
    dtype: str
    quant: str
    memory: str
    #: group-offload: blocks that move together.
    blocks: int
    #: Bytes of LoRAs beside the weights.
    loras: int = 0

    def check(self) -> None:
        """Raise UnknownComponent where there is no arithmetic for a choice."""
        for field, name, known in (
            ("device", self.device, ("cuda", "cpu")),
            ("dtype", self.dtype, tuple(WIDTHS)),
            ("memory", self.memory, PROFILES),
            ("quant", self.quant, tuple(QUANTS)),
        ):
            if name not in known:
                raise UnknownComponent(field, name, known)


@dataclass(frozen=True)
class Work:
    """The largest window of a plan and what is heard in it."""

    latents: tuple[int, int, int]
    frames: int
    height: int
    width: int
    speakers: int
    #: Guidance branches, whose conditions are kept side by side.
    passes: int
    #: Of the voices.
    seconds: float


def weights_bytes(sizes: Sizes, load: Load) -> dict[str, int]:
    """Return the bytes of each component's weights, as they are kept."""
    value = WIDTHS[load.dtype]
    found = {name: count.bytes(value) for name, count in sizes.counts.items()}
    found["transformer"] = sizes.counts["transformer"].bytes(value, weight=QUANTS[load.quant]) + load.loras
    return found


def stages(sizes: Sizes, load: Load, work: Work) -> tuple[StageMemory, ...]:
    """Return what each stage needs, in the order of the walk."""
    return tuple(_stages(sizes, load, work))


def device_bytes(found: tuple[StageMemory, ...]) -> int:
    """Return the peak of a GPU, with CUDA's own share and what is lost between tensors."""
    worst = max(
        sum(stage.weights.values()) + stage.temporaries * (1 + FRAGMENTED) for stage in found if stage.device == "cuda"
    )
    return int(worst) + CONTEXT


def host_bytes(found: tuple[StageMemory, ...]) -> int:
    """Return the peak of the host, above what the process has once everything is imported."""
    worst = max(
        sum(stage.weights.values()) + stage.temporaries * (1 + HOST_FRAGMENTED)
        for stage in found
        if stage.device == "cpu"
    )
    return int(worst) + PROCESS


def _stages(sizes: Sizes, load: Load, work: Work) -> Iterator[StageMemory]:
    value, weights, configs = WIDTHS[load.dtype], weights_bytes(sizes, load), sizes.configs
    yield _loading(sizes, load, weights)
    temporaries = {
        "text": activations.text_bytes(configs["text_encoder"], configs["transformer"]["text_len"], value=value),
        "vae encode": activations.encode_bytes(
            configs["vae"], work.frames, work.height, work.width, device=load.device
        ),
        "image": activations.image_bytes(configs["image_encoder"], value=value),
        "denoise": _denoising(sizes, work, value),
        "vae decode": activations.decode_bytes(
            configs["vae"], work.frames, work.height, work.width, device=load.device
        ),
    }
    parts = {
        "text": "text_encoder",
        "vae encode": "vae",
        "image": "image_encoder",
        "denoise": "transformer",
        "vae decode": "vae",
    }
    # What is not on the device is on the host, and the audio encoder always is.
    host = weights if load.device == "cpu" or load.memory != "none" else {"audio_encoder": weights["audio_encoder"]}
    yield StageMemory("audio", host, _hearing(sizes, work), "cpu")
    for stage, part in parts.items():
        if load.device == "cpu":
            yield StageMemory(stage, weights, temporaries[stage], "cpu")
        else:
            yield StageMemory(stage, _resident(sizes, load, weights, part), temporaries[stage], "cuda")
    pixels = 3 * work.frames * work.height * work.width * 4
    # The decoded window, its frames in another order, their colours matched, and what becomes bytes.
    yield StageMemory("colors", host, 4 * pixels, "cpu")


def _loading(sizes: Sizes, load: Load, weights: Mapping[str, int]) -> StageMemory:
    # Everything is read into the host's memory first, and quantised there, beside what it is made of.
    whole = {"unquantised": sizes.counts["transformer"].bytes(WIDTHS[load.dtype])} if QUANTS[load.quant] else {}
    return StageMemory("load", {**weights, **whole}, 0, "cpu")


def _resident(sizes: Sizes, load: Load, weights: Mapping[str, int], part: str) -> dict[str, int]:
    if load.memory == "none":
        return {name: weights[name] for name in _ON_DEVICE}
    if load.memory == "group-offload" and part == "transformer":
        value, weight = WIDTHS[load.dtype], QUANTS[load.quant]
        # The group that computes and the one that comes next.
        blocks = min(2 * load.blocks, sizes.configs["transformer"]["num_layers"])
        return {part: sizes.root.bytes(value) + (sizes.block * blocks).bytes(value, weight=weight) + load.loras}
    return {part: weights[part]}


def _denoising(sizes: Sizes, work: Work, value: int) -> int:
    config = sizes.configs["transformer"]
    one = activations.conditions_bytes(config, work.latents, value=value, speakers=work.speakers)
    frames, rows, columns = work.latents
    latent = (config["in_channels"] + config["out_channels"] * (3 + work.passes)) * frames * rows * columns * 4
    forward = activations.forward_bytes(config, work.latents, value=value, speakers=work.speakers)
    return forward + (work.passes - 1) * one + int(latent)


def _hearing(sizes: Sizes, work: Work) -> int:
    config = sizes.configs["audio_encoder"]
    features = work.speakers * work.seconds * 25 * config["num_hidden_layers"] * config["hidden_size"] * 4
    return int(features) + activations.audio_bytes(config, work.seconds)
