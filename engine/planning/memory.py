"""Which weights are where in each stage, by the memory profile, and what the stage holds beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.components import StepCache
from engine.data.estimates import StageMemory
from engine.errors import UnknownComponent
from engine.planning import activations
from engine.planning.parameters import PARTS, Quant, Sizes, width

PROFILES = ("none", "text-offload", "model-offload", "group-offload", "lowest")
#: Rows have a scale in float32, and torchao's own a zero point beside it. The types of a GGUF file are its own.
QUANTS: Mapping[str, Quant | None] = {
    "none": None,
    "int8": Quant(1, 5),
    "int8-quanto": Quant(1, 4),
    "fp8-quanto": Quant(1, 4),
}
WIDTHS = {"float32": 4, "bfloat16": 2}
#: Of a GPU: CUDA's context and its libraries' own workspaces.
CONTEXT = 800 * 2**20
#: Share of temporary tensors that is lost between them in a GPU's allocator; an assumption.
FRAGMENTED = 0.1
#: The same of the host, and what every process takes for compiled kernels and for encoding the video. Both were fitted
#: to one run of `multitalk bench plan`, that of the case "base".
HOST_FRAGMENTED = 0.3
PROCESS = 40 * 10**6
#: What reading weights takes beside them (engine.loading.safetensors_reader).
BUFFER = 16 * 2**20
#: Weights that wait in the host's memory lie in pieces (engine.loading.pinned_memory): the share of these that is left
#: over, and the piece that is there before what goes into it has left its own place. Both as the rehearsal counts.
ARENA = 0.02
PIECE = 2**31

_ON_DEVICE = ("transformer", "vae", "text_encoder", "image_encoder")


@dataclass(frozen=True)
class Load:
    """How the weights are kept."""

    device: str
    dtype: str
    quant: str
    memory: str
    #: group-offload and lowest: blocks that come while one computes.
    blocks: int
    #: And those that stay; `engine.planning.estimate` finds what "auto" is on a card.
    resident: int | str = 0
    #: Bytes of LoRAs beside the weights.
    loras: int = 0
    #: Whether any of these is switched on.
    adapted: bool = False
    #: Frames, height and width of the largest window that memory=auto allows for.
    window: tuple[int, int, int] = (81, 480, 832)
    #: Step cache, which keeps tensors from step to step; None: none.
    cache: StepCache | None = None
    #: Side of the VAE's tiles in pixels; 0: none.
    tile: int = 0
    #: How windows continue: "infinitetalk" looks at the picture once a request, "multitalk" in each window.
    continuation: str = "multitalk"
    #: Files of another layout than ours: encoders and autoencoder become themselves in the host's memory.
    converted: bool = False
    #: Weights of few bits with scales beside them, which become dense in the host's memory.
    scaled: bool = False

    def check(self) -> None:
        """Raise UnknownComponent where there is no arithmetic for a choice."""
        for field, name, known in (
            ("device", self.device, ("cuda", "cpu")),
            ("dtype", self.dtype, tuple(WIDTHS)),
            ("memory", self.memory, (*PROFILES, "auto")),
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
    windows: int = 1
    #: Frames that a window takes from the one before.
    motion: int = 0


def weights_bytes(sizes: Sizes, load: Load) -> dict[str, int]:
    """Return the bytes of each component's weights, as they are kept."""
    value = WIDTHS[load.dtype]
    found = {name: count.bytes(value) for name, count in sizes.counts.items()}
    found["transformer"] = sizes.counts["transformer"].bytes(value, QUANTS[load.quant]) + load.loras
    return found


def stages(sizes: Sizes, load: Load, work: Work) -> tuple[StageMemory, ...]:
    """Return what each stage needs, in the order of the walk."""
    return tuple(_stages(sizes, load, work))


def device_bytes(found: tuple[StageMemory, ...]) -> int:
    """Return the peak of a GPU, with CUDA's own share and what is lost between tensors."""
    worst = max(
        sum(stage.weights.values()) + stage.temporaries * (1 + FRAGMENTED) + stage.workspace
        for stage in found
        if stage.device == "cuda"
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


#: The stages that compute with a component, in the order of the walk.
_PARTS = {
    "text": "text_encoder",
    "vae encode": "vae",
    "image": "image_encoder",
    "denoise": "transformer",
    "vae decode": "vae",
}


def _stages(sizes: Sizes, load: Load, work: Work) -> Iterator[StageMemory]:
    weights = weights_bytes(sizes, load)
    yield _loading(sizes, load, weights)
    yield StageMemory("audio", _on_host(load, work, weights, "audio", ""), _hearing(sizes, work), "cpu")
    temporaries, vae = _temporaries(sizes, load, work), sizes.configs["vae"]
    size = work.frames, work.height, work.width
    for stage, part in _PARTS.items():
        if load.device == "cpu":
            yield StageMemory(stage, _on_host(load, work, weights, stage, part), temporaries[stage], "cpu")
            continue
        side = {"vae encode": "encoder", "vae decode": "decoder"}.get(stage)
        layouts = 0 if side is None else activations.workspace_bytes(vae, side, *size, tile=load.tile)
        yield StageMemory(stage, _resident(sizes, load, weights, part), temporaries[stage], "cuda", layouts)
    pixels = 3 * work.frames * work.height * work.width * 4
    # The decoded window, its frames in another order, their colours matched, and what becomes bytes.
    yield StageMemory("colors", _on_host(load, work, weights, "colors", "vae"), 4 * pixels, "cpu")


def _temporaries(sizes: Sizes, load: Load, work: Work) -> dict[str, int]:
    """Return what each stage that computes holds beside the weights."""
    configs, value, device = sizes.configs, WIDTHS[load.dtype], load.device
    transformer, vae, size = configs["transformer"], configs["vae"], (work.frames, work.height, work.width)
    conditions = activations.conditions_bytes(
        transformer, work.latents, value=value, speakers=work.speakers, passes=work.passes
    )
    frames, rows, columns = work.latents
    # Of one channel.
    latent = frames * rows * columns * 4
    held = conditions + (transformer["in_channels"] - transformer["out_channels"]) * latent
    # Whose tensors are there until the window's own take their place; and the frames that it continues.
    before = held + transformer["out_channels"] * latent if work.windows > 1 else 0
    given = 3 * work.height * work.width * 4 * (1 + (work.motion if work.windows > 1 else 0))
    return {
        "text": activations.text_bytes(configs["text_encoder"], transformer["text_len"], value=value),
        "vae encode": activations.encode_bytes(vae, *size, device=device, tile=load.tile) + before + given,
        "image": activations.image_bytes(configs["image_encoder"], value=value)
        + (0 if load.continuation == "infinitetalk" else before + given),
        "denoise": _denoising(sizes, load, work, value) + held,
        "vae decode": activations.decode_bytes(vae, *size, device=device, tile=load.tile)
        + held
        + 2 * transformer["out_channels"] * latent,
    }


def _waiting(load: Load, weights: Mapping[str, int]) -> dict[str, int]:
    """Return what each component takes of the host's memory while it waits there for its turn on the device."""
    # On a CPU memory is taken as it is written to.
    kept: tuple[str, ...] = ()
    if load.device == "cuda" and load.memory != "none":
        kept = ("transformer",) if load.memory == "lowest" else _ON_DEVICE
    return {name: int(size * (1 + ARENA)) if name in kept else size for name, size in weights.items()}


def _on_host(load: Load, work: Work, weights: Mapping[str, int], stage: str, part: str) -> dict[str, int]:
    """Return what is in the host's memory in a stage, of which `part` was used last."""
    there = {"audio_encoder"}
    if load.memory == "lowest":
        # From the first window's sampling on the transformer stays.
        stays = ("denoise", "vae decode", "colors", *(("vae encode", "image") if work.windows > 1 else ()))
        there |= {"transformer"} if stage in stays else set()
        there |= {part} if load.device == "cpu" else set()
    elif load.device == "cpu" or load.memory != "none":
        # What leaves the device comes here.
        there |= set(PARTS)
    waiting = _waiting(load, weights)
    return {name: waiting[name] for name in PARTS if name in there}


def _loading(sizes: Sizes, load: Load, weights: Mapping[str, int]) -> StageMemory:
    """Return the host's worst moment of reading: what is there already, and what is on its way through."""
    through: set[str] = set() if load.device == "cuda" and load.memory in ("none", "lowest") else set(PARTS)
    stays = set(through)
    order: tuple[str, ...] = ("transformer", "vae", "text_encoder", "image_encoder")
    if load.memory == "lowest":
        order, stays = ("text_encoder", "vae", "image_encoder", "transformer", "vae"), {"transformer"}
    # The rest goes from its file to the device.
    through |= {"vae", "text_encoder", "image_encoder"} if load.converted else set()
    through |= {"transformer"} if load.quant != "none" or load.memory == "lowest" or load.scaled else set()
    arriving, temporaries = dict(weights), dict.fromkeys(PARTS, BUFFER)
    if load.scaled:
        # The values of a layer and their product with the scale, both in float32.
        temporaries["transformer"] = max(BUFFER, _largest_layer(sizes) * 8)
    if load.quant == "int8":
        # Read whole, and quantised where it is, a layer in float32 at a time.
        arriving["transformer"] = sizes.counts["transformer"].bytes(WIDTHS[load.dtype]) + load.loras
        temporaries["transformer"] = max(temporaries["transformer"], _largest_layer(sizes) * 4)
    there = {"audio_encoder": weights["audio_encoder"]}
    moments = [StageMemory("load", there, BUFFER, "cpu")]
    for name in order:
        if name in through:
            moments.append(StageMemory("load", {**there, name: arriving[name]}, temporaries[name], "cpu"))
        if name in stays:
            there = {**there, name: weights[name]}
    if _waiting(load, weights) != weights:
        # All are read before the first goes to the pieces in which it waits.
        moved = {name: weights[name] for name in PARTS if name in stays or name == "audio_encoder"}
        moments.append(StageMemory("load", moved, PIECE, "cpu"))
    return max(moments, key=lambda moment: moment.total)


def _largest_layer(sizes: Sizes) -> int:
    config = sizes.configs["transformer"]
    return int(width(config) * config["ffn_dim"])


def _resident(sizes: Sizes, load: Load, weights: Mapping[str, int], part: str) -> dict[str, int]:
    if load.memory == "none":
        return {name: weights[name] for name in _ON_DEVICE}
    if load.memory == "text-offload" and part != "text_encoder":
        return {name: weights[name] for name in _ON_DEVICE if name != "text_encoder"}
    if load.memory in ("group-offload", "lowest") and part == "transformer":
        value, quant = WIDTHS[load.dtype], QUANTS[load.quant]
        # The block that computes and those that come.
        layers = sizes.configs["transformer"]["num_layers"]
        blocks = min(1 + load.blocks + int(load.resident), layers)
        # LoRAs lie beside the layers of blocks, and come with them.
        loras = load.loras * blocks // layers
        return {part: sizes.root.bytes(value) + (sizes.block * blocks).bytes(value, quant) + loras}
    return {part: weights[part]}


def _denoising(sizes: Sizes, load: Load, work: Work, value: int) -> int:
    """Return what a forward and the steps between forwards hold, but for the conditions."""
    config = sizes.configs["transformer"]
    one = activations.conditions_bytes(config, work.latents, value=value, speakers=work.speakers, passes=1)
    forward = activations.forward_bytes(config, work.latents, value=value, speakers=work.speakers, adapted=load.adapted)
    forward -= one
    if load.quant != "none":
        # Weights that are quantised are written out a layer at a time, while one of the two wide tensors of the
        # feed-forward is there.
        wide = activations.tokens(config, work.latents) * config["ffn_dim"] * value
        forward += max(0, _largest_layer(sizes) * value - wide)
    frames, rows, columns = work.latents
    # The network's input, the latents and what each branch predicts.
    latent = (config["in_channels"] + config["out_channels"] * (1 + work.passes)) * frames * rows * columns * 4
    kept = activations.cache_bytes(config, work.latents, cache=load.cache, passes=work.passes)
    return forward + int(latent) + kept


def _hearing(sizes: Sizes, work: Work) -> int:
    config = sizes.configs["audio_encoder"]
    features = work.speakers * work.seconds * 25 * config["num_hidden_layers"] * config["hidden_size"] * 4
    return int(features) + activations.audio_bytes(config, work.seconds)
