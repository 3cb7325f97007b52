"""Config of how the model uses its devices: memory, several processes, the autoencoder, torch.compile."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import II

from engine.config.ranges import one_of, within


@dataclass
class MemoryConfig:
    """Which parts of the model are in host memory and on the device at a time: see docs/loading.md for the profiles."""

    #: "none", "text-offload", "model-offload", "group-offload", "lowest", or "auto": the fastest of them that fits.
    name: str = "none"
    #: group-offload and lowest: number of transformer blocks that are copied to the device while one computes.
    blocks: int = field(default=1, metadata=within(1, 1000))
    #: group-offload and lowest: blocks that stay on the device while the transformer is in use; "auto": as many as fit
    #: when the weights are loaded, with the memory for a window of the chosen resolution kept free.
    resident: int | str = field(default=0, metadata=within(0, 1000) | one_of("auto"))
    #: Copy the next blocks while the previous ones compute; needs CUDA. null: if the device is CUDA.
    streams: bool | None = None
    #: CUDA: pin the weights in host memory; null: all weights if host memory is sufficient when they are loaded, else
    #: only the transformer's blocks.
    pin: bool | None = None
    #: Side of the VAE's tiles in pixels, a multiple of 32; 0: no tiles. With tiles the frames change a little.
    tile: int = field(default=0, metadata=within(0, 4096))
    #: Encode a window's frames (H.264) while the next window is computed, with one more window's frames in host memory;
    #: null: if the device is CUDA. The video has the same bytes.
    overlap: bool | None = None
    #: Maximum MiB of host memory for the features of earlier prompts, so that a job with the same prompt does not run
    #: the text encoder; never written to disk. 0: none are kept.
    prompts: int = field(default=64, metadata=within(0, 65_536))


@dataclass
class VaeConfig:
    """How the video autoencoder (VAE) computes."""

    #: Number format of decoding: "float32", "bfloat16" (half the memory, and faster on a card), or "auto": bfloat16 if
    #: the transformer computes in it on CUDA, else float32. Encoding is always in float32; docs/codec.md has figures.
    decode_dtype: str = field(default=II("model.decode_dtype"), metadata=one_of("auto", "float32", "bfloat16"))


@dataclass
class ParallelConfig:
    """How many devices work on one video: "none" (one), or one per process that torchrun or a worker started.

    "ulysses" divides the tokens of each forward among them, "guidance" the passes of each evaluation.
    """

    #: The way, one of the presets' names.
    name: str = "none"
    #: parallel=guidance: number of groups among which the passes are divided; within a group, tokens are divided. 0:
    #: every process is its own group.
    groups: int = field(default=0, metadata=within(0, 65_536))
    #: A worker's number of processes, itself included; 0: one for each CUDA device. Others are started by torchrun.
    processes: int = field(default=0, metadata=within(0, 65_536))
    #: Number of this process (rank) among all processes; torchrun sets it.
    rank: int | None = field(default="${oc.env:RANK,null}", metadata=within(0, 65_536))  # type: ignore[assignment]
    #: Number of this process among those of its machine; torchrun sets it.
    local_rank: int | None = field(default="${oc.env:LOCAL_RANK,null}", metadata=within(0, 65_536))  # type: ignore[assignment]
    #: Number of processes; torchrun sets it.
    size: int | None = field(default="${oc.env:WORLD_SIZE,null}", metadata=within(1, 65_536))  # type: ignore[assignment]
    #: Id of torchrun's run; null: torchrun did not start this process.
    run: str | None = "${oc.env:TORCHELASTIC_RUN_ID,null}"


@dataclass
class CompileConfig:
    """Whether torch.compile compiles the network, for a GPU: see docs/compile.md."""

    #: "none", or "blocks": every transformer block is one graph for all sizes.
    name: str = "none"
    #: Backend of torch.compile: "inductor" generates kernels; "eager" and "aot_eager" only trace, also on a CPU.
    backend: str = field(default="inductor", metadata=one_of("inductor", "aot_eager", "eager"))
    #: Folder in which compiled kernels are kept for later processes; null: ".compiled" next to the model's folder on a
    #: volume, if it is writable, else TORCHINDUCTOR_CACHE_DIR. Its files are executed: nobody else may write to it.
    cache: str | None = None
