"""What of the model is in memory and on the device, and when."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from engine.errors import ConfigError, UnknownComponent
from engine.multitalk.component import Component
from engine.room import allowance, choose_profile, free_on_device, free_on_host

logger = logging.getLogger(__name__)

NAMES = ("none", "model-offload", "group-offload", "lowest", "auto")


@dataclass(frozen=True)
class Profile:
    """How memory is used.

    "none": everything is on the device from now on. "model-offload": one component is, the others are on the CPU.
    "group-offload": so too, but of the transformer only some blocks at a time (diffusers' group offloading). "lowest":
    so too, but text encoder, image encoder and VAE are read from disk when their turn comes and released after it, and
    the transformer is released before a text is encoded. "auto": the first of these that fits.
    """

    name: str = "none"
    #: Transformer blocks moved together.
    blocks: int = 1
    #: Move blocks while others compute, on streams of their own, which needs CUDA; None: where that is the device.
    streams: bool | None = None
    #: Side in pixels of the VAE's tiles, a multiple of 32; 0: none. Frames made of tiles differ a little.
    tile: int = 0
    #: For "auto": frames, height and width of the largest window that will be made.
    window: tuple[int, int, int] = (81, 480, 832)


class Placement(Protocol):
    """Brings components to the device when their turn comes."""

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have component `name` on the device inside a `with`; only one at a time."""
        ...

    def close(self) -> None:
        """Release all components."""
        ...


def settle(
    profile: Profile, sizes: Mapping[str, int], *, activations: int, device: str, processes: int = 1
) -> tuple[Profile, str]:
    """Return the profile with "auto" and the streams decided, and why "auto" became what it is.

    `sizes` are the bytes of each component in memory; `processes` like this one share the machine's. Raises
    UnknownComponent and ConfigError for what cannot be.
    """
    if profile.name not in NAMES:
        raise UnknownComponent("memory", profile.name, NAMES)
    if profile.blocks < 1:
        raise ConfigError(f"groups of {profile.blocks} blocks", field="memory.blocks", hint="give 1 or more")
    if profile.tile < 0 or profile.tile % 32:
        raise ConfigError(
            f"tiles of {profile.tile} pixels", field="memory.tile", hint="a multiple of 32, or 0 for none"
        )
    cuda = torch.device(device).type == "cuda"
    if profile.streams and not cuda:
        raise ConfigError(
            f"streams need CUDA, the device is {device!r}",
            field="memory.streams",
            hint="leave it out: blocks are then moved one after the other",
        )
    profile = replace(profile, streams=cuda if profile.streams is None else profile.streams)
    if profile.name != "auto":
        return profile, ""
    picked, reason = choose_profile(
        sizes, activations, device_free=free_on_device() if cuda else None, host_free=free_on_host() // processes
    )
    return replace(profile, name=picked), reason


def place(profile: Profile, components: Mapping[str, Component], *, device: str) -> Placement:
    """Place `components` as `profile`, which is settled, says."""
    if profile.name == "none":
        for component in components.values():
            component.load(device)
        return _Resident(components)
    if profile.name == "lowest":
        return _read_in_turn(profile, components, device)
    modules = {name: component.load("cpu") for name, component in components.items()}
    if profile.name == "group-offload":
        offload_groups(modules.pop("transformer"), device, profile)
    come = {name: partial(module.to, device) for name, module in modules.items()}
    go = {name: partial(module.to, "cpu") for name, module in modules.items()}
    return _InTurn(components, come, go)


def lighten(vae: Any, profile: Profile) -> None:
    """Let a VAE take less memory for its work, as far as `profile` allows."""
    if profile.name == "lowest":
        # One video at a time, which is exact; so far nobody hands it more.
        vae.enable_slicing()
    if profile.tile:
        stride = profile.tile * 3 // 4
        vae.enable_tiling(profile.tile, profile.tile, stride, stride)


def _read_in_turn(profile: Profile, components: Mapping[str, Component], device: str) -> Placement:
    transformer = components["transformer"]

    def come_text() -> None:
        # The two largest are never both there.
        _let_go(transformer)
        components["text_encoder"].load(device)

    def come_transformer() -> None:
        if transformer.module is None:
            offload_groups(transformer.load("cpu"), device, profile)

    come: dict[str, Callable[[], Any]] = {
        **{name: partial(component.load, device) for name, component in components.items()},
        "text_encoder": come_text,
        "transformer": come_transformer,
    }
    # Between two windows the transformer stays where it is, on the CPU.
    go = {name: partial(_let_go, component) for name, component in components.items() if name != "transformer"}
    return _InTurn(components, come, go)


class _Resident:
    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = components

    def use(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        _let_go(*self._components.values())


class _InTurn:
    """Lets a component go only when another one is wanted, so that neighbouring uses of one move nothing.

    A name that has no way to come takes care of itself, but needs the room.
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        come: Mapping[str, Callable[[], Any]],
        go: Mapping[str, Callable[[], Any]],
    ) -> None:
        self._components, self._come, self._go = components, come, go
        self._resident: str | None = None
        self._used: str | None = None

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        if self._used not in (None, name):
            raise RuntimeError(f"{name} is wanted on the device while {self._used} is in use")
        outer, self._used = self._used, name
        try:
            self._bring(name)
            yield
        finally:
            self._used = outer

    def _bring(self, name: str) -> None:
        if self._resident == name:
            return
        self._evict()
        come = self._come.get(name)
        if come is None:
            return
        # Before it comes: one that fails half-way leaves parts of itself on the device.
        self._resident = name
        try:
            come()
        except BaseException:
            self._evict()
            raise

    def _evict(self) -> None:
        if self._resident is not None:
            self._go.get(self._resident, _stay)()
            self._resident = None
            _free_cache()

    def close(self) -> None:
        self._resident = None
        _let_go(*self._components.values())


def _stay() -> None:
    pass


def _let_go(*components: Component) -> None:
    there = [component for component in components if component.module is not None]
    for component in there:
        component.release()
    if there:
        gc.collect()
        _free_cache()


def offload_groups(transformer: Any, device: str, profile: Profile) -> None:
    """Keep the blocks on the CPU from now on, and bring `profile.blocks` at a time to the device when they compute."""
    transformer.enable_group_offload(
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=profile.blocks,
        # The next group comes while the current one computes; pinning all of 14B at once would take 30 GB of memory.
        use_stream=profile.streams,
        low_cpu_mem_usage=profile.streams,
    )
    if profile.streams:
        trace_blocks(transformer, device)
    else:
        logger.info("blocks are moved one after the other, without streams")


@torch.no_grad()
def trace_blocks(transformer: Any, device: str) -> None:
    """Run one token through the network.

    diffusers learns from the first forward in which order to prefetch groups. Ours would be an embedding of
    conditions, which enters no block: nothing would ever be prefetched.
    """
    config = transformer.config
    transformer(
        hidden_states=torch.zeros(1, config.in_channels, *config.patch_size, device=device),
        timestep=torch.zeros(1, device=device),
        encoder_hidden_states=torch.zeros(1, 1, config.text_dim, device=device),
        encoder_hidden_states_image=torch.zeros(1, config.image_tokens, config.image_dim, device=device),
    )


def activation_bytes(window: tuple[int, int, int], config: Any, spatial: int, itemsize: int) -> int:
    """Return what forwards over a window of (frames, height, width) are allowed to need beside the weights."""
    frames, height, width = window
    side = spatial * config.patch_size[1]
    tokens = (1 + (frames - 1) // config.vae_scale_temporal) * (height // side) * (width // side)
    return allowance(int(tokens), config.num_attention_heads * config.attention_head_dim, itemsize)


def _free_cache() -> None:
    # Does nothing where CUDA was never used.
    torch.cuda.empty_cache()
