"""What of the model is in memory and on the device, and when."""

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
from engine.loading.pinned_memory import Arena, rounded
from engine.loading.pinned_memory import settle as settle_in
from engine.loading.slots import BESIDE, parts_of, size_of, weights_of
from engine.loading.streamer import Beside, Streamer
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

    "none": everything is on the device from now on. "text-offload": everything but the text encoder is, or that alone
    while texts are encoded. "model-offload": one component is, the others are on the CPU.
    "group-offload": so too, but of the transformer only some blocks at a time. "lowest": so too, but text encoder,
    image encoder and VAE are read from disk when their turn comes and released after it, and the transformer is
    released before a text is encoded. "auto": the first of these that fits.
    """

    name: str = "none"
    #: Transformer blocks that come while one computes.
    blocks: int = 1
    #: Blocks that stay on the device while the transformer is in use; "auto": as many as fit.
    resident: int | str = 0
    #: For resident="auto": bytes of the device for the transformer's weights. `settle` finds them.
    room: int = 0
    #: Move blocks while others compute, on a stream of their own, which needs CUDA; None: where that is the device.
    streams: bool | None = None
    #: Pin weights that wait in the host's memory, which a GPU reads faster; None: of all parts if the host has room for
    #: that, else of the transformer's blocks alone. On a CPU nothing is.
    pin: bool | None = None
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
    if profile.resident != "auto" and (isinstance(profile.resident, str) or profile.resident < 0):
        raise ConfigError(
            f"{profile.resident} blocks that stay", field="memory.resident", hint="give 0 or more, or auto"
        )
    cuda = torch.device(device).type == "cuda"
    if profile.streams and not cuda:
        raise ConfigError(
            f"streams need CUDA, the device is {device!r}",
            field="memory.streams",
            hint="leave it out: blocks are then moved one after the other",
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
    picked, reason = choose_profile(
        sizes, activations, device_free=free_on_device() if cuda else None, host_free=free_on_host() // processes
    )
    return replace(profile, name=picked), reason


def place(profile: Profile, components: Mapping[str, Component], *, device: str) -> Placement:
    """Place `components` as `profile`, which is settled, says."""
    if profile.name == "none":
        for component in components.values():
            _bring_beside(component.load(device), device)
        return _Resident(components)
    if profile.name == "lowest":
        return _read_in_turn(profile, components, device)
    modules = {name: component.load("cpu") for name, component in components.items()}
    movers: dict[str, Mover | Streamer] = {}
    for name, module in modules.items():
        if name == "transformer" and profile.name == "group-offload":
            movers[name] = stream_blocks(module, device, profile)
        else:
            movers[name] = Mover(module, device)
            if profile.pin:
                pin(module)
    together: tuple[frozenset[str], ...] = ()
    if profile.name == "text-offload":
        together = (frozenset(movers) - {"text_encoder"},)
    return _InTurn(
        components,
        {name: mover.come for name, mover in movers.items()},
        {name: mover.go for name, mover in movers.items()},
        together,
    )


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
    streamers: list[Streamer] = []

    def come_text() -> None:
        # The two largest are never both there.
        streamers.clear()
        _let_go(transformer)
        _empty_host_cache()
        components["text_encoder"].load(device)

    def come_transformer() -> None:
        if transformer.module is None:
            streamers[:] = [stream_blocks(transformer.load("cpu"), device, profile)]
        streamers[0].come()

    def go_transformer() -> None:
        # It stays in the host's memory.
        for streamer in streamers:
            streamer.go()

    come: dict[str, Callable[[], Any]] = {
        **{name: partial(component.load, device) for name, component in components.items()},
        "text_encoder": come_text,
        "transformer": come_transformer,
    }
    go = {name: partial(_let_go, component) for name, component in components.items()}
    return _InTurn(components, come, {**go, "transformer": go_transformer})


class _Resident:
    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = components

    def use(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        _let_go(*self._components.values())


class _InTurn:
    """Lets a component go only when another one is wanted, so that neighbouring uses of one move nothing.

    Components that stand `together` come and go as one.
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        come: Mapping[str, Callable[[], Any]],
        go: Mapping[str, Callable[[], Any]],
        together: Collection[frozenset[str]] = (),
    ) -> None:
        self._components, self._come, self._go, self._together = components, come, go, together
        self._resident: frozenset[str] = frozenset()
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
        if name in self._resident:
            return
        self._evict()
        # Before it comes: one that fails half-way leaves parts of itself on the device.
        self._resident = next((group for group in self._together if name in group), frozenset([name]))
        try:
            for one in sorted(self._resident):
                self._come[one]()
        except BaseException:
            self._evict()
            raise

    def _evict(self) -> None:
        if self._resident:
            for one in sorted(self._resident):
                self._go[one]()
            self._resident = frozenset()
            _free_cache()

    def close(self) -> None:
        try:
            self._evict()
        finally:
            # The ways to come hold modules and their memory.
            self._come, self._go = {}, {}
            _let_go(*self._components.values())
            _empty_host_cache()


def _let_go(*components: Component) -> None:
    there = [component for component in components if component.module is not None]
    for component in there:
        component.release()
    if there:
        gc.collect()
        _free_cache()


def stream_blocks(transformer: Any, device: str, profile: Profile) -> Streamer:
    """Keep the blocks in the host's memory from now on; each comes to the device when it computes."""
    lane = Beside(device) if profile.streams else None
    if lane is None:
        logger.info("blocks are moved one after the other, without streams")
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
    root = sum(size_of(weight.tensor) for weight in weights_of(transformer, apart=blocks))
    fitting = resident_blocks(profile.room, root=root, block=max(sizes), places=profile.blocks + 1, layers=len(blocks))
    logger.info("%d of %d blocks stay on the device", fitting, len(blocks))
    return fitting


def pin(module: nn.Module) -> None:
    """Copy a component's weights, which are in the host's memory, to memory that a GPU reads faster."""
    settle_in(weights_of(module), _arena(module, pinned=True))


def _arena(module: nn.Module, *, pinned: bool) -> Arena:
    parts = [part for weight in weights_of(module) for part in parts_of(weight.tensor)]
    return Arena(sum(rounded(part.numel() * part.element_size()) for part in parts), pinned=pinned)


def _bring_beside(module: nn.Module, device: str) -> None:
    """Bring what is beside the parts of a module to where the module is."""
    for one in module.modules():
        for beside in one.__dict__.get(BESIDE, ()):
            for weight in weights_of(beside):
                weight.put(moved(weight.tensor, device))


def activation_bytes(window: tuple[int, int, int], config: Any, spatial: int, itemsize: int) -> int:
    """Return what forwards over a window of (frames, height, width) are allowed to need beside the weights."""
    frames, height, width = window
    side = spatial * config.patch_size[1]
    tokens = (1 + (frames - 1) // config.vae_scale_temporal) * (height // side) * (width // side)
    return allowance(int(tokens), config.num_attention_heads * config.attention_head_dim, itemsize)


def _free_cache() -> None:
    # Does nothing where CUDA was never used.
    torch.cuda.empty_cache()


def _empty_host_cache() -> None:
    # Torch keeps pinned memory for whoever pins next; older versions have no way to free it.
    empty = getattr(torch.accelerator, "empty_host_cache", None)
    if empty is not None and torch.cuda.is_available():
        empty()
