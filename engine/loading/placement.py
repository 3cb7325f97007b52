"""Which parts of the model are in memory and on the device, and when."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from engine.errors import ConfigError, UnknownComponent
from engine.loading.component import Component
from engine.loading.mover import Mover, moved
from engine.loading.pinned_memory import Arena, copy_to_arena, rounded
from engine.loading.slots import BRANCHES, parts_of, size_of, weights_of
from engine.loading.streamer import Streamer, StreamLane
from engine.machine.profiles import (
    PROFILES,
    USABLE,
    allowance,
    choose_profile,
    free_on_device,
    free_on_host,
    resident_blocks,
    room_for_blocks,
)

logger = logging.getLogger(__name__)

NAMES = (*PROFILES, "auto")


@dataclass(frozen=True)
class Profile:
    """How memory is used.

    "none": everything is on the device all the time. "text-offload": everything except the text encoder is on the
    device; while texts are encoded, only the text encoder. "model-offload": one component is on the device, the others
    are on the CPU. "group-offload": the same, but only some blocks of the transformer at a time. "lowest": the same,
    but text encoder, image encoder and VAE are read from disk when they are needed and released afterwards, and the
    transformer is released before a text is encoded. "auto": the first of these that fits.
    """

    name: str = "none"
    #: Transformer blocks that are copied ahead while one computes.
    blocks: int = 1
    #: Blocks that stay on the device while the transformer is used; "auto": as many as fit.
    resident: int | str = 0
    #: For resident="auto": bytes on the device for the transformer's weights. `resolve_profile` sets it.
    room: int = 0
    #: Copy blocks while others compute, on a separate CUDA stream; None: if the device is CUDA.
    streams: bool | None = None
    #: Pin weights in host memory, which a GPU reads faster; None: all parts if the host has enough memory, else only
    #: the transformer's blocks. Ignored on a CPU.
    pin: bool | None = None
    #: Side of the VAE's tiles in pixels, a multiple of 32; 0: no tiles. Frames made with tiles differ slightly.
    tile: int = 0
    #: Most MiB of host memory for features of earlier prompts; 0: none are kept.
    prompts: int = 0
    #: For "auto": frames, height and width of the largest window that will be made.
    window: tuple[int, int, int] = (81, 480, 832)


class Placement(Protocol):
    """Moves components to the device when they are used."""

    def use(self, name: str) -> AbstractContextManager[None]:
        """Have component `name` on the device inside a `with`; only one at a time."""
        ...

    def close(self) -> None:
        """Release all components."""
        ...


def resolve_profile(
    profile: Profile, sizes: Mapping[str, int], *, activations: int, device: str, processes: int = 1
) -> tuple[Profile, str]:
    """Return the profile with "auto" values resolved, and the reason for the choice of a profile.

    `sizes` are the bytes of each component in memory; `processes` processes share the machine. Raises UnknownComponent
    and ConfigError for invalid values.
    """
    if profile.name not in NAMES:
        raise UnknownComponent("memory", profile.name, NAMES)
    if profile.blocks < 1:
        raise ConfigError(f"groups of {profile.blocks} blocks", field="memory.blocks", hint="give 1 or more")
    if profile.tile < 0 or profile.tile % 32:
        raise ConfigError(
            f"tiles of {profile.tile} pixels", field="memory.tile", hint="a multiple of 32, or 0 for none"
        )
    if profile.resident != "auto" and (isinstance(profile.resident, str) or profile.resident < 0):
        raise ConfigError(
            f"{profile.resident} blocks that stay", field="memory.resident", hint="give 0 or more, or auto"
        )
    cuda = torch.device(device).type == "cuda"
    if profile.streams and not cuda:
        raise ConfigError(
            f"streams need CUDA, the device is {device!r}",
            field="memory.streams",
            hint="leave it out: blocks are then copied one after the other",
        )
    profile = replace(profile, streams=cuda if profile.streams is None else profile.streams)
    if not cuda:
        profile = replace(profile, pin=False)
    elif profile.pin is None and sum(sizes.values()) <= USABLE * free_on_host() // processes:
        profile = replace(profile, pin=True)
    if cuda and profile.resident == "auto":
        profile = replace(profile, room=room_for_blocks(activations, free_on_device()))
    if profile.name != "auto":
        return profile, ""
    name, reason = choose_profile(
        sizes, activations, device_free=free_on_device() if cuda else None, host_free=free_on_host() // processes
    )
    return replace(profile, name=name), reason


def place(profile: Profile, components: Mapping[str, Component], *, device: str) -> Placement:
    """Place `components` as `profile` says, which `resolve_profile` returned."""
    if profile.name == "none":
        for component in components.values():
            _move_branches(component.load(device), device)
        return _AllResident(components)
    if profile.name == "lowest":
        return _read_in_turn(profile, components, device)
    modules = {name: component.load("cpu") for name, component in components.items()}
    movers: dict[str, Mover | Streamer] = {}
    for name, module in modules.items():
        if name == "transformer" and profile.name == "group-offload":
            movers[name] = transformer_mover(module, device, profile)
        else:
            movers[name] = Mover(module, device)
            if profile.pin:
                pin(module)
    together: tuple[frozenset[str], ...] = ()
    if profile.name == "text-offload":
        together = (frozenset(movers) - {"text_encoder"},)
    return _OneAtATime(
        components,
        {name: mover.onload for name, mover in movers.items()},
        {name: mover.offload for name, mover in movers.items()},
        together,
    )


def reduce_memory(vae: Any, profile: Profile) -> None:
    """Switch on the VAE's memory savings that `profile` asks for."""
    if profile.name == "lowest":
        # One video at a time, which changes no result; so far all callers pass one.
        vae.enable_slicing()
    if profile.tile:
        stride = profile.tile * 3 // 4
        vae.enable_tiling(profile.tile, profile.tile, stride, stride)


def _read_in_turn(profile: Profile, components: Mapping[str, Component], device: str) -> Placement:
    transformer = components["transformer"]
    movers: list[Mover | Streamer] = []

    def load_text_encoder() -> None:
        # The two largest components are never in memory together.
        movers.clear()
        _release(transformer)
        _empty_host_cache()
        components["text_encoder"].load(device)

    def load_transformer() -> None:
        if transformer.module is None:
            movers[:] = [transformer_mover(transformer.load("cpu"), device, profile)]
        movers[0].onload()

    def offload_transformer() -> None:
        # It stays in host memory.
        for mover in movers:
            mover.offload()

    onload: dict[str, Callable[[], Any]] = {
        **{name: partial(component.load, device) for name, component in components.items()},
        "text_encoder": load_text_encoder,
        "transformer": load_transformer,
    }
    offload = {name: partial(_release, component) for name, component in components.items()}
    return _OneAtATime(components, onload, {**offload, "transformer": offload_transformer})


class _AllResident:
    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = components

    def use(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        _release(*self._components.values())


class _OneAtATime:
    """Moves a component off the device only when another one is used, so repeated uses move nothing.

    Components of one set in `together` are moved together.
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        onload: Mapping[str, Callable[[], Any]],
        offload: Mapping[str, Callable[[], Any]],
        together: Collection[frozenset[str]] = (),
    ) -> None:
        self._components, self._onload, self._offload, self._together = components, onload, offload, together
        self._resident: frozenset[str] = frozenset()
        self._used: str | None = None

    @contextmanager
    def use(self, name: str) -> Iterator[None]:
        if self._used not in (None, name):
            raise RuntimeError(f"{name} is needed on the device while {self._used} is in use")
        outer, self._used = self._used, name
        try:
            self._bring(name)
            yield
        finally:
            self._used = outer

    def _bring(self, name: str) -> None:
        if name in self._resident:
            return
        self._evict()
        # Set first: a component that fails half-way leaves parts on the device.
        self._resident = next((group for group in self._together if name in group), frozenset([name]))
        try:
            for one in sorted(self._resident):
                self._onload[one]()
        except BaseException:
            self._evict()
            raise

    def _evict(self) -> None:
        if self._resident:
            for one in sorted(self._resident):
                self._offload[one]()
            self._resident = frozenset()
            _free_cache()

    def close(self) -> None:
        try:
            self._evict()
        finally:
            # These functions refer to modules and so keep their memory.
            self._onload, self._offload = {}, {}
            _release(*self._components.values())
            _empty_host_cache()


def _release(*components: Component) -> None:
    loaded = [component for component in components if component.module is not None]
    for component in loaded:
        component.release()
    if loaded:
        gc.collect()
        _free_cache()


def transformer_mover(transformer: Any, device: str, profile: Profile) -> Mover | Streamer:
    """Return what brings the transformer to the device for memory=group-offload and lowest.

    On a CPU all weights are on the device already, often as mapped pages of their files: streaming would copy them.
    """
    if torch.device(device).type == "cpu":
        return Mover(transformer, device)
    return stream_blocks(transformer, device, profile)


def stream_blocks(transformer: Any, device: str, profile: Profile) -> Streamer:
    """Keep the blocks in host memory from now on; each is copied to the device when it computes."""
    lane = StreamLane(device) if profile.streams else None
    if lane is None:
        logger.info("blocks are copied one after the other, without a stream of their own")
    pinned = profile.pin is not False and torch.device(device).type == "cuda"
    return Streamer(
        transformer,
        device,
        arena=_arena(transformer, pinned=pinned),
        ahead=profile.blocks,
        resident=_resident(transformer, profile),
        lane=lane,
    )


def _resident(transformer: Any, profile: Profile) -> int:
    """Return how many blocks stay on the device."""
    blocks = list(transformer.blocks)
    if profile.resident != "auto":
        return min(int(profile.resident), len(blocks))
    sizes = [sum(size_of(weight.tensor) for weight in weights_of(block)) for block in blocks]
    root = sum(size_of(weight.tensor) for weight in weights_of(transformer, excluding=blocks))
    fitting = resident_blocks(profile.room, root=root, block=max(sizes), places=profile.blocks + 1, layers=len(blocks))
    logger.info("%d of %d blocks stay on the device", fitting, len(blocks))
    return fitting


def pin(module: nn.Module) -> None:
    """Copy a component's weights from ordinary to pinned host memory, which a GPU reads faster."""
    copy_to_arena(weights_of(module), _arena(module, pinned=True))


def _arena(module: nn.Module, *, pinned: bool) -> Arena:
    parts = [part for weight in weights_of(module) for part in parts_of(weight.tensor)]
    return Arena(sum(rounded(part.numel() * part.element_size()) for part in parts), pinned=pinned)


def _move_branches(module: nn.Module, device: str) -> None:
    """Move the branches attached to a module's parts to the module's device."""
    for one in module.modules():
        for branch in one.__dict__.get(BRANCHES, ()):
            for weight in weights_of(branch):
                weight.put(moved(weight.tensor, device))


def activation_bytes(window: tuple[int, int, int], config: Any, spatial: int, itemsize: int) -> int:
    """Return the bytes reserved for activations of a window of (frames, height, width), in addition to the weights."""
    frames, height, width = window
    side = spatial * config.patch_size[1]
    tokens = (1 + (frames - 1) // config.vae_scale_temporal) * (height // side) * (width // side)
    return allowance(int(tokens), config.num_attention_heads * config.attention_head_dim, itemsize)


def _free_cache() -> None:
    # Does nothing if CUDA was never used.
    torch.cuda.empty_cache()


def _empty_host_cache() -> None:
    # Torch caches pinned memory; older versions cannot free it.
    empty = getattr(torch.accelerator, "empty_host_cache", None)
    if empty is not None and torch.cuda.is_available():
        empty()
