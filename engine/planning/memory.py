"""Memory of each stage: where the memory profile puts the weights, and the stage's other tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.components import StepCache
from engine.data.estimates import StageMemory
from engine.errors import UnknownComponent
from engine.machine.device import resolve_decode_dtype
from engine.machine.profiles import PROFILES
from engine.planning import activations
from engine.planning.network import Costs, Section, costs_of
from engine.planning.operations import Multiplied
from engine.planning.parameters import PARTS, Quant, Sizes, vae_layers

#: Of files: each row has a float32 scale. GGUF files have types of their own.
QUANTS: Mapping[str, Quant | None] = {
    "none": None,
    "int8-quanto": Quant(1, 4),
    "fp8-quanto": Quant(1, 4),
}
WIDTHS = {"float32": 4, "bfloat16": 2}
#: Bytes on a GPU for CUDA's context and the libraries' workspaces.
CONTEXT = 800 * 2**20
#: Fragmentation: share of temporary tensors that is lost in a GPU's allocator; an assumption.
FRAGMENTED = 0.1
#: The same of the host, and what every process takes for compiled kernels and for encoding the video. Both were fitted
#: to one run of `multitalk bench plan`, that of the case "base".
HOST_FRAGMENTED = 0.3
PROCESS = 40 * 10**6
#: Bytes that reading weights needs in addition to them (engine.loading.safetensors_reader).
BUFFER = 16 * 2**20
#: Weights in pinned host memory are in pieces (engine.loading.pinned_memory): the share of these that stays unused, and
#: the piece that exists before its weights have left their old memory. Both as counted by the rehearsal.
ARENA = 0.02
PIECE = 2**31

_ON_DEVICE = ("transformer", "vae", "text_encoder", "image_encoder")


@dataclass(frozen=True)
class Load:
    """How the weights are kept in memory."""

    device: str
    dtype: str
    quant: str
    memory: str
    #: group-offload and lowest: blocks that are copied while one computes.
    blocks: int
    #: Blocks that stay on the device; `engine.planning.estimate` resolves "auto" for a card.
    resident: int | str = 0
    #: How layers are kept if they are quantised while loading; None: `quant` is a file's.
    made: Quant | None = None
    #: The quantised file that is read in that case; "none": full weights.
    stored: str = "none"
    #: What multiplies in 8 bits; None: quantised weights are expanded for each product.
    multiplied: Multiplied | None = None
    #: Whether the text encoder is quantised, too.
    text: bool = False
    #: Bytes of attached LoRAs.
    loras: int = 0
    #: Whether any of them is switched on.
    adapted: bool = False
    #: Frames, height and width of the largest window, for memory=auto.
    window: tuple[int, int, int] = (81, 480, 832)
    #: Whether the passes of an evaluation are one forward of a batch; None: if blocks are streamed and fit.
    batched: bool | None = False
    #: Step cache, which keeps tensors from step to step; None: none.
    cache: StepCache | None = None
    #: Side of the VAE's tiles in pixels; 0: none.
    tile: int = 0
    #: In what the VAE decodes, "auto" too: see `engine.machine.device`.
    decode_dtype: str = "float32"
    #: How windows continue: "infinitetalk" encodes the picture once per request, "multitalk" in each window.
    continuation: str = "multitalk"
    #: Whether files have another layout than ours: encoders and autoencoder are then converted in host memory.
    converted: bool = False
    #: Whether files have low-bit weights with separate scales, which become dense in host memory.
    scaled: bool = False
    #: Whether torch.compile compiles the network's blocks.
    compiled: bool = False
    #: Whether norms and rotations run in our own kernels on a GPU.
    fused: bool = True
    #: Number format of the residual stream.
    residual_dtype: str = "float32"

    #: attention=NAME, which decides how fast self-attention is.
    attention: str = "auto"

    @property
    def decoded(self) -> int:
        """Return the bytes of a value while the VAE decodes."""
        return WIDTHS[resolve_decode_dtype(self.decode_dtype, self.device, self.dtype)]

    @property
    def kept(self) -> Quant | None:
        """How the blocks' linear layers are kept; None: in the dtype. Raises KeyError where it is not known."""
        return self.made or QUANTS[self.quant]

    def check(self) -> None:
        """Raise UnknownComponent for a choice that cannot be estimated."""
        for field, name, choices in (
            ("device", self.device, ("cuda", "cpu")),
            ("dtype", self.dtype, tuple(WIDTHS)),
            ("residual_dtype", self.residual_dtype, tuple(WIDTHS)),
            ("memory", self.memory, (*PROFILES, "auto")),
            ("quant", self.quant, (*QUANTS, *([] if self.made is None else [self.quant]))),
        ):
            if name not in choices:
                raise UnknownComponent(field, name, choices)


@dataclass(frozen=True)
class Work:
    """The largest window of a plan and the voices in it."""

    latents: tuple[int, int, int]
    frames: int
    height: int
    width: int
    speakers: int
    #: Guidance branches, whose conditions are in memory together.
    passes: int
    #: Seconds of the voices.
    seconds: float
    windows: int = 1
    #: Frames that a window repeats from the previous one.
    motion: int = 0

    @property
    def section(self) -> Section:
        """What a forward works on."""
        return Section(self.latents, self.speakers, self.motion)


def weights_bytes(sizes: Sizes, load: Load) -> dict[str, int]:
    """Return the bytes of each component's weights, as they are kept."""
    value = WIDTHS[load.dtype]
    sizes_in_bytes = {name: count.bytes(value) for name, count in sizes.counts.items()}
    sizes_in_bytes["transformer"] = sizes.counts["transformer"].bytes(value, load.kept) + load.loras
    if load.text:
        sizes_in_bytes["text_encoder"] = sizes.counts["text_encoder"].bytes(value, load.kept)
    decoder = sum(layer.parameters for layer in vae_layers(sizes.configs["vae"]) if layer.side == "decoder")
    sizes_in_bytes["vae"] -= decoder * (4 - load.decoded)
    return sizes_in_bytes


def stages(sizes: Sizes, load: Load, work: Work) -> tuple[StageMemory, ...]:
    """Return the memory of each stage, in the order in which they run."""
    return tuple(_stages(sizes, load, work))


def device_bytes(stages: tuple[StageMemory, ...]) -> int:
    """Return the peak on a GPU in bytes, with CUDA's context and fragmentation."""
    worst = max(
        sum(stage.weights.values()) + stage.temporaries * (1 + FRAGMENTED) + stage.workspace
        for stage in stages
        if stage.device == "cuda"
    )
    return int(worst) + CONTEXT


def host_bytes(stages: tuple[StageMemory, ...]) -> int:
    """Return the peak on the host in bytes, in addition to the process after all imports."""
    worst = max(
        sum(stage.weights.values()) + stage.temporaries * (1 + HOST_FRAGMENTED)
        for stage in stages
        if stage.device == "cpu"
    )
    return int(worst) + PROCESS


#: The stages that compute with a component, in the order in which they run.
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
    yield StageMemory(
        "audio",
        _on_host(load, work, weights, "audio", ""),
        costs_of(sizes).hearing_bytes(work.speakers, work.seconds),
        "cpu",
    )
    temporaries, vae = _temporaries(sizes, load, work), sizes.configs["vae"]
    size = work.frames, work.height, work.width
    for stage, part in _PARTS.items():
        if load.device == "cpu":
            yield StageMemory(stage, _on_host(load, work, weights, stage, part), temporaries[stage], "cpu")
            continue
        side = {"vae encode": "encoder", "vae decode": "decoder"}.get(stage)
        layouts = (
            0 if side is None else activations.workspace_bytes(vae, side, *size, tile=load.tile, value=load.decoded)
        )
        yield StageMemory(stage, _resident(sizes, load, weights, part), temporaries[stage], "cuda", layouts)
    picture = 3 * work.height * work.width
    # Frames as bytes, of this window and twice of the one that is encoded; and those that the next one continues.
    pictures = picture * (3 * work.frames + 4 * work.motion)
    on_host = _on_host(load, work, weights, "colors", "vae")
    if load.device == "cpu":
        # Colours are changed in place, then frame after frame becomes bytes.
        yield StageMemory("colors", on_host, picture * work.frames * 4 + pictures, "cpu")
        return
    yield StageMemory("colors", _resident(sizes, load, weights, "vae"), temporaries["colors"], "cuda")
    yield StageMemory("write", on_host, pictures, "cpu")


def _temporaries(sizes: Sizes, load: Load, work: Work) -> dict[str, int]:
    """Return the bytes of each computing stage in addition to the weights."""
    configs, value, device = sizes.configs, WIDTHS[load.dtype], load.device
    costs, vae, size = costs_of(sizes), configs["vae"], (work.frames, work.height, work.width)
    conditions = costs.conditions_bytes(work.section, value=value, passes=work.passes)
    frames, rows, columns = work.latents
    # Of one channel.
    latent = frames * rows * columns * 4
    persistent = conditions + costs.beside * latent
    # The previous window's tensors exist until this window replaces them; and the frames that it continues.
    before = persistent + costs.channels * latent if work.windows > 1 else 0
    pixels = 3 * work.height * work.width * 4 * (1 + (work.motion if work.windows > 1 else 0))
    encoded = (costs.encoded_frames(work.section, work.frames), *size[1:])
    return {
        "text": max(
            activations.text_bytes(configs["text_encoder"], costs.text_len, value=value),
            _expanded_text(sizes, load),
        ),
        "vae encode": activations.encode_bytes(vae, *encoded, device=device, tile=load.tile) + before + pixels,
        "image": costs.image_bytes(value=value) + (0 if load.continuation == "infinitetalk" else before + pixels),
        "denoise": _denoising(costs, load, work, value) + persistent,
        "vae decode": activations.decode_bytes(vae, *size, device=device, tile=load.tile, value=load.decoded)
        + persistent
        + 2 * costs.channels * latent,
        "colors": activations.colors_bytes(*size) + persistent + costs.channels * latent,
    }


def _expanded_text(sizes: Sizes, load: Load) -> int:
    """Return the bytes of the text encoder's one layer whose weights are expanded (engine.loading.dynamic)."""
    if not load.text or load.multiplied is None:
        return 0
    config = sizes.configs["text_encoder"]
    # torchao multiplies float8 with its scale in float32, and casts int8 directly; as counted by the rehearsal.
    return int(config["d_model"] * config["d_ff"] * (10 if load.multiplied.format == "fp8" else 2))


def _waiting(load: Load, weights: Mapping[str, int]) -> dict[str, int]:
    """Return the host memory of each component while it is not on the device."""
    # On a CPU memory is allocated as it is written to.
    on_host: tuple[str, ...] = ()
    if load.device == "cuda" and load.memory != "none":
        on_host = ("transformer",) if load.memory == "lowest" else _ON_DEVICE
    return {name: int(size * (1 + ARENA)) if name in on_host else size for name, size in weights.items()}


def _on_host(load: Load, work: Work, weights: Mapping[str, int], stage: str, part: str) -> dict[str, int]:
    """Return the weights that are in host memory in a stage; `part` was used last."""
    present = {"audio_encoder"}
    if load.memory == "lowest":
        # The transformer stays from the first window's denoising on.
        stays = ("denoise", "vae decode", "colors", *(("vae encode", "image") if work.windows > 1 else ()))
        present |= {"transformer"} if stage in stays else set()
        present |= {part} if load.device == "cpu" else set()
    elif load.device == "cpu" or load.memory != "none":
        # Components that leave the device return to the host.
        present |= set(PARTS)
    waiting = _waiting(load, weights)
    return {name: waiting[name] for name in PARTS if name in present}


def _loading(sizes: Sizes, load: Load, weights: Mapping[str, int]) -> StageMemory:
    """Return the host's peak while weights are read: those already there, and those passing through."""
    through: set[str] = set() if load.device == "cuda" and load.memory in ("none", "lowest") else set(PARTS)
    stays = set(through)
    order: tuple[str, ...] = ("transformer", "vae", "text_encoder", "image_encoder")
    if load.memory == "lowest":
        order, stays = ("text_encoder", "vae", "image_encoder", "transformer", "vae"), {"transformer"}
    # All others go from their file to the device.
    through |= {"vae", "text_encoder", "image_encoder"} if load.converted else set()
    through |= {"transformer"} if load.quant != "none" or load.memory == "lowest" or load.scaled else set()
    through |= {"text_encoder"} if load.text else set()
    arriving, temporaries = dict(weights), dict.fromkeys(PARTS, BUFFER)
    if load.scaled:
        # Values of a layer and their product with the scale, both in float32.
        temporaries["transformer"] = max(BUFFER, _largest_layer(sizes) * 8)
    if load.made is not None and load.stored == "none":
        # Read completely, then quantised in place, one layer in float32 at a time.
        arriving["transformer"] = sizes.counts["transformer"].bytes(WIDTHS[load.dtype]) + load.loras
        temporaries["transformer"] = max(temporaries["transformer"], _largest_layer(sizes) * 4)
        if load.text:
            arriving["text_encoder"] = sizes.counts["text_encoder"].bytes(WIDTHS[load.dtype])
    present = {"audio_encoder": weights["audio_encoder"]}
    moments = [StageMemory("load", present, BUFFER, "cpu")]
    for name in order:
        if name in through:
            moments.append(StageMemory("load", {**present, name: arriving[name]}, temporaries[name], "cpu"))
        elif name == "transformer" and load.loras:
            # The tensors of the LoRAs' files, in up to 32 bits, and those that are attached.
            moments.append(StageMemory("load", present, BUFFER + load.loras * 5 // 2, "cpu"))
        if name in stays:
            present = {**present, name: weights[name]}
    if _waiting(load, weights) != weights:
        # All are read before the first is copied to pinned memory.
        moved = {name: weights[name] for name in PARTS if name in stays or name == "audio_encoder"}
        moments.append(StageMemory("load", moved, PIECE, "cpu"))
    return max(moments, key=lambda moment: moment.total)


def _largest_layer(sizes: Sizes) -> int:
    return costs_of(sizes).largest_layer


def _resident(sizes: Sizes, load: Load, weights: Mapping[str, int], part: str) -> dict[str, int]:
    if load.memory == "none":
        return {name: weights[name] for name in _ON_DEVICE}
    if load.memory == "text-offload" and part != "text_encoder":
        return {name: weights[name] for name in _ON_DEVICE if name != "text_encoder"}
    if load.memory in ("group-offload", "lowest") and part == "transformer":
        value, quant = WIDTHS[load.dtype], load.kept
        # The block that computes and those that are copied.
        layers = costs_of(sizes).layers
        blocks = min(1 + load.blocks + int(load.resident), layers)
        # LoRAs are attached to the layers of blocks and are copied with them.
        loras = load.loras * blocks // layers
        return {part: sizes.root.bytes(value) + (sizes.block * blocks).bytes(value, quant) + loras}
    return {part: weights[part]}


def _denoising(costs: Costs, load: Load, work: Work, value: int) -> int:
    """Return the bytes of a forward and of the steps between forwards, without the conditions."""
    forward = costs.forward_bytes(
        work.section,
        value=value,
        adapted=load.adapted,
        expanded=load.quant != "none" and load.multiplied is None,
        stream=WIDTHS[load.residual_dtype],
        device=load.device,
    )
    frames, rows, columns = work.latents
    # The network's input, the latents and the prediction of each branch.
    latent = (costs.beside + costs.channels * (2 + work.passes)) * frames * rows * columns * 4
    cached = costs.cache_bytes(work.section, load.cache, value=value, passes=work.passes)
    return forward * (work.passes if load.batched else 1) + int(latent) + cached
