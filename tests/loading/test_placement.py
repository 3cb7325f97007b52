"""Memory profiles: what is in memory and on the device at a time."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from crossings import Crossings
from steering import make_cache
from tiny_folder import SIZES, build_text_encoder, build_transformer, build_vae
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from engine.errors import ConfigError, UnknownComponent
from engine.loading.component import Component
from engine.loading.mover import Mover
from engine.loading.placement import Placement, Profile, activation_bytes, reduce_memory, resolve_profile, stream_blocks
from engine.loading.placement import place as place_settled
from engine.loading.quanto import quantise
from engine.loading.slots import parts_of
from engine.machine.profiles import choose_profile, resident_blocks
from engine.network.codec import WanCodec
from plugins.caches.teacache import TeaCache

NAMES = ("transformer", "vae", "text_encoder", "image_encoder")


class Part(nn.Module):
    """A module that is "there" when its weights are on the meta device, which stands for one this machine lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.rand(3)) for _ in range(2))

    @property
    def there(self) -> bool:
        return {parameter.device.type for parameter in self.parameters()} == {"meta"}


def place(name: str, parts: dict[str, Any], *, device: str, **more: Any) -> Placement:
    """Place modules that are there already; reading one is moving it."""
    profile, _ = resolve_profile(Profile(name, **more), {}, activations=0, device="cpu")
    components = {part: Component(part, 0, module.to) for part, module in parts.items()}
    return place_settled(profile, components, device=device)


@pytest.fixture
def parts() -> dict[str, Any]:
    return {name: Part() for name in NAMES}


def there(parts: dict[str, Any]) -> set[str]:
    return {name for name, part in parts.items() if part.there}


def test_none_puts_everything_there_at_once(parts: dict[str, Any]) -> None:
    placement = place("none", parts, device="meta")

    assert there(parts) == set(NAMES)
    with placement.use("vae"), placement.use("transformer"):
        assert there(parts) == set(NAMES)


def test_closing_releases_every_component() -> None:
    for name in ("none", "text-offload", "model-offload", "group-offload", "lowest"):
        kept: list[Any] = []
        parts = {part: nn.Linear(2, 2) for part in NAMES} | {"transformer": build_transformer()}
        components = {part: Component(part, 0, module.to, kept.append) for part, module in parts.items()}
        profile, _ = resolve_profile(Profile(name), {}, activations=0, device="cpu")
        placement = place_settled(profile, components, device="cpu")
        with placement.use("vae"):
            pass

        placement.close()

        assert [component.module for component in components.values()] == [None] * len(NAMES), name
        assert kept[-1] is None


def test_model_offload_has_one_there_at_a_time(parts: dict[str, Any]) -> None:
    placement = place("model-offload", parts, device="meta")

    assert there(parts) == set()
    for name in ("text_encoder", "vae", "transformer", "vae"):
        with placement.use(name):
            assert there(parts) == {name}


def test_model_offload_moves_nothing_between_two_uses_of_one_part(parts: dict[str, Any]) -> None:
    placement = place("model-offload", parts, device="meta")
    with Crossings() as crossings:
        for _ in range(3):
            with placement.use("transformer"), placement.use("transformer"):
                pass

    assert len(crossings.seen) == len(list(parts["transformer"].parameters()))


def test_text_offload_has_the_text_encoder_there_or_all_others(parts: dict[str, Any]) -> None:
    placement = place("text-offload", parts, device="meta")

    assert there(parts) == set()
    with placement.use("text_encoder"):
        assert there(parts) == {"text_encoder"}
    with placement.use("vae"):
        assert there(parts) == set(NAMES) - {"text_encoder"}
    # From window to window nothing moves.
    with Crossings() as crossings:
        for name in ("image_encoder", "transformer", "vae", "vae", "image_encoder", "transformer"):
            with placement.use(name):
                assert there(parts) == set(NAMES) - {"text_encoder"}
    assert crossings.seen == []
    with placement.use("text_encoder"):
        assert there(parts) == {"text_encoder"}


def test_text_offload_takes_back_all_where_one_does_not_fit(parts: dict[str, Any]) -> None:
    placement = place("text-offload", parts, device="meta")
    full = Full()  # type: ignore[no-untyped-call]
    full.left = 3

    with pytest.raises(RuntimeError, match="out of memory"), full, placement.use("vae"):
        pass
    assert not any(parameter.is_meta for part in parts.values() for parameter in part.parameters())


def test_model_offload_refuses_two_at_once(parts: dict[str, Any]) -> None:
    placement = place("model-offload", parts, device="meta")

    with placement.use("vae"):
        with pytest.raises(RuntimeError, match="vae is in use"), placement.use("transformer"):
            pass
        assert there(parts) == {"vae"}
    with placement.use("transformer"):
        assert there(parts) == {"transformer"}


class Full(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A device with room for one tensor more."""

    left = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of memory")
        return func(*args, **(kwargs or {}))


def test_a_part_that_does_not_fit_is_taken_back(parts: dict[str, Any]) -> None:
    placement = place("model-offload", parts, device="meta")
    before = list(parts["vae"].parameters())

    with pytest.raises(RuntimeError, match="out of memory"), Full(), placement.use("vae"):  # type: ignore[no-untyped-call]
        pass
    assert all(now is then for now, then in zip(parts["vae"].parameters(), before, strict=True))
    with placement.use("vae"):
        assert there(parts) == {"vae"}


# --- what goes and comes ----------------------------------------------------------------------------------------------


def test_weights_that_nobody_changed_are_not_copied_back() -> None:
    encoder = build_text_encoder()
    tied = nn.Linear(4, 4)
    tied.weight = encoder.get_input_embeddings().weight
    encoder.beside = tied
    before = dict(encoder.state_dict(keep_vars=True))
    mover = Mover(encoder, "meta")

    with Crossings() as crossings:
        mover.onload()
    assert all(value.is_meta for value in (*encoder.parameters(), *encoder.buffers()))
    assert tied.weight is encoder.get_input_embeddings().weight
    assert len(crossings.seen) == len({id(value) for value in (*encoder.parameters(), *encoder.buffers())})
    with Crossings() as crossings:
        mover.offload()

    assert crossings.seen == []
    after = encoder.state_dict(keep_vars=True)
    assert all(after[name] is value for name, value in before.items())


def test_what_was_changed_on_the_device_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(tensor: torch.Tensor, device: str) -> torch.Tensor:
        return nn.Parameter(tensor.detach().clone()) if isinstance(tensor, nn.Parameter) else tensor.clone()

    monkeypatch.setattr("engine.loading.mover.moved", copied)
    module = nn.BatchNorm1d(3)
    running, weight, bias = module.running_mean, module.weight, module.bias
    mover = Mover(module, "cpu")
    mover.onload()
    module(torch.rand(5, 3) + 1)
    module.bias = nn.Parameter(torch.full((3,), 7.0))
    with torch.no_grad():
        module.weight.mul_(2)

    mover.offload()

    assert module.running_mean is running
    assert module.weight is weight
    assert running is not None
    assert running.min() > 0
    assert weight.tolist() == [2, 2, 2]
    assert module.bias is not bias
    assert module.bias.tolist() == [7, 7, 7]


@pytest.mark.parametrize("kind", ["int8", "float8", "gguf"])
def test_a_quantised_weight_goes_and_comes_as_what_it_is(kind: str) -> None:
    layer = nn.Linear(32, 8, bias=False)
    layer.weight = quantised(kind, layer.weight)
    kept = layer.weight
    mover = Mover(layer, "meta")
    mover.onload()
    there = layer.weight

    assert type(there) is type(kept)
    assert isinstance(there, nn.Parameter)
    assert all(part.is_meta for part in parts_of(there))
    assert there.device.type == "meta"
    assert there.shape == kept.shape
    mover.offload()
    assert layer.weight is kept


def quantised(kind: str, weight: torch.Tensor) -> Any:
    if kind == "gguf":
        pytest.importorskip("gguf")
        import gguf
        from diffusers.quantizers.gguf.utils import GGUFParameter

        packed = gguf.quants.quantize(weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
        return GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
    pytest.importorskip("torchao")
    dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
    return nn.Parameter(quantise(weight, dtype).kept(torch.float32), requires_grad=False)


# --- group offload ----------------------------------------------------------------------------------------------------


def run(transformer: Any, cache: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, 4, SIZES["text_dim"], generator=generator)
    image = torch.randn(1, SIZES["image_tokens"], SIZES["image_dim"], generator=generator)
    outputs = []
    with torch.no_grad():
        conditions = transformer.embed_conditions((2, 4, 4), text, image)
        with cache.attach(transformer):
            for step, time in enumerate((900.0, 850.0, 300.0)):
                latents = torch.randn(1, 36, 2, 4, 4, generator=generator)
                with cache.branch("cond", step):
                    outputs.append(transformer(latents, torch.tensor([time]), conditions=conditions).sample)
    return outputs


@pytest.mark.parametrize("blocks", [1, 2])
def test_group_offload_computes_the_same(blocks: int) -> None:
    plain, offloaded = build_transformer(), build_transformer()
    stream_blocks(offloaded, "cpu", Profile("group-offload", blocks=blocks)).onload()

    outputs = run(offloaded, make_cache("none"))

    assert all(torch.equal(*pair) for pair in zip(outputs, run(plain, make_cache("none")), strict=True))


def test_a_step_cache_works_over_group_offload() -> None:
    arguments: dict[str, Any] = {"threshold": 1e9, "warmup": 1, "coefficients": (1.0, 0.0)}
    plain, offloaded = build_transformer(), build_transformer()
    stream_blocks(offloaded, "cpu", Profile("group-offload")).onload()
    caches = [make_cache("teacache", **arguments) for _ in range(2)]

    pairs = zip(run(plain, caches[0]), run(offloaded, caches[1]), strict=True)

    assert all(torch.equal(*pair) for pair in pairs)
    assert isinstance(caches[1], TeaCache)
    assert caches[1].computed == [True, False, False]


@pytest.mark.parametrize("name", ["group-offload", "lowest"])
def test_on_a_cpu_the_blocks_compute_with_the_weights_that_were_read(name: str) -> None:
    transformer = build_transformer()
    read = {parameter.data_ptr() for parameter in transformer.parameters()}
    components = {"transformer": Component("transformer", 0, lambda _device: transformer)}
    placement = place_settled(Profile(name, streams=False), components, device="cpu")
    used: set[int] = set()
    for block in transformer.blocks:
        block.attn2.register_forward_hook(lambda *_: used.update(one.data_ptr() for one in transformer.parameters()))

    for _ in range(2):
        with placement.use("transformer"):
            run(transformer, make_cache("none"))

    assert used == read


def test_group_offload_leaves_the_room_to_the_transformer() -> None:
    vae = Part()
    placement = place("group-offload", {"transformer": build_transformer(), "vae": vae}, device="meta")
    with placement.use("vae"):
        assert vae.there

    with placement.use("transformer"):
        assert not vae.there


def test_the_vae_decodes_under_model_offload() -> None:
    vae = build_vae()
    placement = place("model-offload", {"vae": vae}, device="cpu")

    with placement.use("vae"):
        assert WanCodec(vae).decode(torch.zeros(16, 1, 2, 2)).shape == (3, 1, 16, 16)


# --- lowest -----------------------------------------------------------------------------------------------------------


class Shelf:
    """Components that log when they are read and released, and whose modules can be counted."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.alive: dict[str, weakref.ref[nn.Module]] = {}
        self.components = {
            name: Component(name, 0, partial(self.read, name), partial(self.hand, name)) for name in NAMES
        }

    def read(self, name: str, device: str) -> nn.Module:
        self.log.append(f"+{name}")
        module: nn.Module = build_transformer() if name == "transformer" else nn.Linear(4, 4)
        self.alive[name] = weakref.ref(module)
        return module

    def hand(self, name: str, module: Any) -> None:
        if module is None and self.there(name):
            self.log.append(f"-{name}")

    def there(self, name: str) -> bool:
        return name in self.alive and self.alive[name]() is not None


def walk(placement: Placement, windows: int) -> Iterator[str]:
    """Use the components as the engine does, and yield the name of each while it is in use."""
    for name in ("text_encoder", *(("vae", "image_encoder", "transformer", "transformer", "vae") * windows)):
        with placement.use(name):
            yield name


def test_lowest_reads_what_is_wanted_and_keeps_nothing_else() -> None:
    shelf = Shelf()
    placement = place_settled(Profile("lowest", streams=False), shelf.components, device="cpu")

    assert not shelf.alive
    for name in walk(placement, windows=2):
        others = set(NAMES) - {name, "transformer"}
        assert shelf.there(name)
        assert not any(shelf.there(other) for other in others)
        assert name != "text_encoder" or not shelf.there("transformer")
    reads = [entry for entry in shelf.log if entry.startswith("+")]
    assert reads == ["+text_encoder", "+vae", "+image_encoder", "+transformer", "+vae", "+image_encoder", "+vae"]


def test_lowest_releases_the_transformer_before_the_next_text() -> None:
    shelf = Shelf()
    placement = place_settled(Profile("lowest", streams=False), shelf.components, device="cpu")
    for _ in walk(placement, windows=1):
        pass
    assert shelf.there("transformer")

    for name in walk(placement, windows=1):
        assert name != "text_encoder" or not shelf.there("transformer")
    assert shelf.log.count("+transformer") == 2
    placement.close()
    assert not any(shelf.there(name) for name in NAMES)


def test_what_is_released_is_back_with_the_system() -> None:
    component = Component("vae", 0, lambda _device: nn.Linear(4096, 4096))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    before = resident()
    component.load("cpu")
    there = resident()
    component.release()

    weight = 4 * 4096**2
    assert there - before > 0.9 * weight
    assert there - resident() > 0.9 * weight


def test_lowest_computes_the_same() -> None:
    transformer = build_transformer()
    components = {name: Component(name, 0, lambda _device: transformer) for name in NAMES}
    placement = place_settled(Profile("lowest", streams=False), components, device="cpu")

    with placement.use("transformer"):
        outputs = run(transformer, make_cache("none"))
    assert all(torch.equal(*pair) for pair in zip(outputs, run(build_transformer(), make_cache("none")), strict=True))


def test_slices_are_exact_and_tiles_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(16, 2, 12, 12, generator=generator)
    plain = WanCodec(build_vae()).decode(latents)
    sliced, tiled, whole = build_vae(), build_vae(), build_vae()
    reduce_memory(sliced, Profile("lowest"))
    reduce_memory(tiled, Profile(tile=64))
    reduce_memory(whole, Profile(tile=128))

    assert torch.equal(WanCodec(sliced).decode(latents), plain)
    assert torch.equal(WanCodec(whole).decode(latents), plain)
    decoded = WanCodec(tiled).decode(latents)
    assert decoded.shape == plain.shape
    assert not torch.equal(decoded, plain)


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        (Profile("group-offload", blocks=0), "memory.blocks"),
        (Profile("lowest", blocks=-1), "memory.blocks"),
        (Profile("group-offload", streams=True), "memory.streams"),
        (Profile("group-offload", resident=-1), "memory.resident"),
        (Profile("group-offload", resident="all"), "memory.resident"),
        (Profile(tile=48), "memory.tile"),
        (Profile(tile=-32), "memory.tile"),
    ],
)
def test_what_a_profile_cannot_mean_here_is_refused(profile: Profile, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_profile(profile, {}, activations=0, device="cpu")

    assert caught.value.field == field


def test_streams_are_for_cuda_and_left_out_on_a_cpu() -> None:
    assert resolve_profile(Profile("lowest"), {}, activations=0, device="cpu")[0].streams is False
    assert resolve_profile(Profile("lowest"), {}, activations=0, device="cuda")[0].streams is True


@pytest.mark.parametrize(
    ("profile", "free", "pinned"),
    [
        (Profile("group-offload"), 200, True),
        # Not all of it, but what is moved again and again.
        (Profile("group-offload"), 100, None),
        (Profile("group-offload", pin=True), 100, True),
        (Profile("group-offload", pin=False), 200, False),
    ],
)
def test_weights_are_pinned_where_there_is_room(
    profile: Profile, free: int, pinned: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.loading.placement.free_on_host", lambda: free)

    assert resolve_profile(profile, {"transformer": 90, "vae": 10}, activations=0, device="cuda")[0].pin is pinned
    assert resolve_profile(profile, {"transformer": 90, "vae": 10}, activations=0, device="cpu")[0].pin is False


@pytest.mark.parametrize(("free", "stay"), [(10**9, 3), (0, 0)])
def test_as_many_blocks_stay_as_fit(free: int, stay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.loading.placement.free_on_device", lambda: free)
    profile, _ = resolve_profile(Profile("group-offload", resident="auto"), {}, activations=0, device="cuda")

    streamer = stream_blocks(build_transformer(), "meta", replace(profile, streams=False))

    assert len(streamer.stays) == stay
    assert streamer.streamed == [index for index in range(3) if index not in streamer.stays]


@pytest.mark.parametrize(("room", "stay"), [(0, 0), (37, 0), (38, 1), (99, 6), (114, 7), (115, 10), (999, 10)])
def test_blocks_that_stay_leave_room_to_those_that_come(room: int, stay: int) -> None:
    assert resident_blocks(room, root=5, block=11, places=2, layers=10) == stay


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(UnknownComponent, match="text-offload, model-offload, group-offload, lowest, auto"):
        resolve_profile(Profile("disk"), {}, activations=0, device="cpu")


# --- auto -------------------------------------------------------------------------------------------------------------

GB = 10**9
#: Of the published model in bfloat16, about.
SIZES_14B = {"transformer": 33 * GB, "text_encoder": 11 * GB, "image_encoder": GB, "vae": GB // 2}


@pytest.mark.parametrize(
    ("device", "host", "picked"),
    [
        (80, 100, "none"),
        (80, 10, "none"),
        (60, 100, "text-offload"),
        (53, 100, "model-offload"),
        (24, 100, "group-offload"),
        (24, 45, "lowest"),
        (60, 45, "lowest"),
        (12, 20, "lowest"),
        (None, 100, "none"),
        (None, 60, "lowest"),
    ],
)
def test_auto_picks_the_fastest_profile_that_fits(device: int | None, host: int, picked: str) -> None:
    name, reason = choose_profile(
        SIZES_14B, 14 * GB, device_free=None if device is None else device * GB, host_free=host * GB
    )

    assert name == picked
    assert reason.startswith("nothing fits" if (device, host) == (12, 20) else picked)
    assert picked == "none" or "none needs 5" in reason


def test_activations_of_480p_are_allowed_what_was_published() -> None:
    network = SimpleNamespace(
        patch_size=(1, 2, 2), num_attention_heads=40, attention_head_dim=128, vae_scale_temporal=4
    )

    assert 13 * GB < activation_bytes((81, 448, 896), network, 8, 2) < 14 * GB


def test_auto_on_this_cpu_is_settled_with_its_reason() -> None:
    small, reason = resolve_profile(Profile("auto"), {"transformer": 1000, "vae": 1000}, activations=0, device="cpu")
    large, _ = resolve_profile(Profile("auto", blocks=3), {"transformer": 10**15}, activations=0, device="cpu")

    assert (small.name, large.name, large.blocks) == ("none", "lowest", 3)
    assert "this machine's memory" in reason
