"""Blocks that come to the device one after the other: the same numbers, each copied once, in any order of things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from crossings import Crossings
from safetensors.torch import save_file
from steering import make_cache
from tiny_folder import build_transformer
from torch import Tensor, nn

from engine.loading.fill import fill, find_stored
from engine.loading.lora import load_runtime_lora
from engine.loading.pinned_memory import STEP, Arena, copy_to_arena, rounded
from engine.loading.quanto import quantise
from engine.loading.safetensors_reader import AheadReader
from engine.loading.slots import parts_of, size_of, weights_of
from engine.loading.streamer import DeviceBuffer, Streamer
from engine.network.compat import gguf_parts
from engine.network.precision import kept_in_float32
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel

SHAPE = (2, 4, 4)
LAYERS = 5


class Late:
    """A lane that copies as late as possible: until then a place holds invalid bytes."""

    def __init__(self) -> None:
        self.pending: dict[int, Sequence[tuple[Tensor, Tensor]]] = {}
        self.busy: set[int] = set()
        self.sources: list[int] = []

    def fill(self, place: DeviceBuffer, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
        assert id(place) not in self.busy, "a block is still being computed here"
        place.memory.fill_(255)
        self.pending[id(place)] = runs
        self.sources.append(runs[0][1].data_ptr())

    def wait(self, place: DeviceBuffer) -> None:
        self.busy.add(id(place))
        for to, source in self.pending.pop(id(place), ()):
            to.copy_(source)

    def leave(self, place: DeviceBuffer) -> None:
        self.busy.remove(id(place))

    def fills(self, streamer: Streamer) -> list[int]:
        """Return how often each block was copied."""
        counted = Counter(self.sources)
        return [counted[block.runs[0][1].data_ptr()] for block in streamer.blocks]


def streamed(transformer: Any, device: str = "cpu", room: int = 0, **more: Any) -> Streamer:
    size = sum(rounded(size_of(weight.tensor)) for weight in weights_of(transformer)) + room
    return Streamer(transformer, device, arena=Arena(size, pinned=False), **more)


def embedded(transformer: Any, speakers: int = 2, device: str = "cpu") -> Any:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    sizes = transformer.config
    masks = torch.zeros(speakers + 1, *SHAPE[1:])
    for index in range(speakers + 1):
        masks[index, :, index] = 1
    return transformer.embed_conditions(
        SHAPE,
        values(1, 4, sizes.text_dim),
        values(1, sizes.image_tokens, sizes.image_dim),
        values(speakers, 5, 5, sizes.audio_layers, sizes.audio_channels),
        masks,
    )


def run(transformer: Any, conditions: Any, forwards: int = 3, cache: Any = None) -> list[Tensor]:
    outputs, cache = [], cache or make_cache("none")
    with torch.no_grad(), cache.attach(transformer):
        for step in range(forwards):
            latents = torch.randn(1, 36, *SHAPE, generator=torch.Generator().manual_seed(step))
            with cache.branch("cond", step):
                outputs.append(transformer(latents, torch.tensor([900.0 - step]), conditions=conditions).sample)
    return outputs


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("speakers", [1, 2])
@pytest.mark.parametrize(("ahead", "resident"), [(1, 0), (2, 0), (9, 0), (1, 1), (1, 2), (2, 3), (1, 4), (1, 5)])
def test_blocks_that_come_and_go_compute_the_same(ahead: int, resident: int, speakers: int) -> None:
    plain, transformer, lane = build_transformer(num_layers=LAYERS), build_transformer(num_layers=LAYERS), Late()
    streamer = streamed(transformer, ahead=ahead, resident=resident, lane=lane)

    for _ in range(2):
        streamer.onload()
        outputs = run(transformer, embedded(transformer, speakers))
        streamer.offload()

    assert same(outputs, run(plain, embedded(plain, speakers)))
    assert len(streamer.stays) == resident
    # Once a forward; the first ones were on their way for a fourth when the third was the last.
    stays = streamer.stays if ahead + 1 < LAYERS - resident else set(range(LAYERS))
    for index, fills in enumerate(lane.fills(streamer)):
        assert fills in ({2} if index in stays else {6, 8}), index
    assert sum(lane.fills(streamer)) <= 2 * len(stays) + 6 * (LAYERS - len(stays)) + 2 * (ahead + 1)


def test_between_forwards_the_hosts_weights_stand_in_their_places() -> None:
    transformer = build_transformer(num_layers=LAYERS)
    streamer = streamed(transformer)
    before = list(transformer.parameters())
    streamer.onload()
    run(transformer, embedded(transformer))

    assert all(now is then for now, then in zip(transformer.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("name", "arguments", "copied_before"),
    [
        ("teacache", {"threshold": 1e9, "warmup": 1, "coefficients": (1.0, 0.0)}, LAYERS),
        # The second block is looked ahead to, once.
        ("firstblock", {"threshold": 1e9}, LAYERS + 1),
        # All but the third.
        ("taylorseer", {"warmup": 2, "interval": 3, "order": 1}, 3 * LAYERS),
    ],
)
def test_blocks_that_a_step_cache_passes_over_are_not_copied(
    name: str, arguments: dict[str, Any], copied_before: int
) -> None:
    plain, transformer, lane = build_transformer(num_layers=LAYERS), build_transformer(num_layers=LAYERS), Late()
    streamer = streamed(transformer, lane=lane)
    streamer.onload()

    outputs = run(transformer, embedded(transformer), 4, make_cache(name, **arguments))

    assert same(outputs, run(plain, embedded(plain), 4, make_cache(name, **arguments)))
    # And the next one at the end, in vain.
    assert len(lane.sources) == copied_before + 1


@pytest.mark.parametrize("failing", range(LAYERS))
def test_a_forward_that_fails_half_way_leaves_the_next_one_as_it_is(failing: int) -> None:
    plain, transformer, lane = build_transformer(num_layers=LAYERS), build_transformer(num_layers=LAYERS), Late()
    streamer = streamed(transformer, lane=lane)
    before = list(transformer.parameters())
    streamer.onload()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = transformer.blocks[failing].attn2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(transformer, embedded(transformer))
    handle.remove()

    assert not lane.busy
    assert all(now is then for now, then in zip(transformer.parameters(), before, strict=True))
    assert same(run(transformer, embedded(transformer)), run(plain, embedded(plain)))


def test_a_copy_that_fails_is_made_again() -> None:
    class Torn(Late):
        left = 3

        def fill(self, place: DeviceBuffer, runs: Sequence[tuple[Tensor, Tensor]]) -> None:
            self.left -= 1
            if self.left == 0:
                raise RuntimeError("no such device")
            super().fill(place, runs)

    plain, transformer = build_transformer(num_layers=LAYERS), build_transformer(num_layers=LAYERS)
    streamer = streamed(transformer, lane=Torn())
    streamer.onload()
    with pytest.raises(RuntimeError, match="no such device"):
        run(transformer, embedded(transformer))

    assert same(run(transformer, embedded(transformer)), run(plain, embedded(plain)))


def quantised(transformer: Any, kind: str) -> Any:
    """Store the linear layers of all blocks as int8, float8 or in GGUF's blocks of 32."""
    for name, layer in list(transformer.blocks.named_modules()):
        if not isinstance(layer, nn.Linear) or layer.in_features % 32 or layer.out_features % 32:
            continue
        if kind == "gguf":
            import gguf

            parts = gguf_parts()
            packed = gguf.quants.quantize(layer.weight.detach().numpy(), gguf.GGMLQuantizationType.Q8_0)
            late = parts.linear(layer.in_features, layer.out_features, layer.bias is not None, torch.float32)
            late.weight = parts.parameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)
            late.bias = layer.bias
            owner, _, leaf = name.rpartition(".")
            transformer.blocks.get_submodule(owner).register_module(leaf, late)
        else:
            dtype = torch.int8 if kind == "int8" else torch.float8_e4m3fn
            kept = quantise(layer.weight, dtype).kept(torch.float32)
            layer.weight = nn.Parameter(kept, requires_grad=False)
    return transformer


@pytest.mark.parametrize("kind", ["int8", "float8", "gguf"])
def test_quantised_blocks_compute_the_same(kind: str) -> None:
    pytest.importorskip("gguf" if kind == "gguf" else "torchao")
    sizes: dict[str, Any] = {"num_layers": LAYERS, "attention_head_dim": 16}
    plain, transformer = (quantised(build_transformer(**sizes), kind) for _ in range(2))
    smaller = sum(size_of(weight.tensor) for weight in weights_of(plain.blocks[0]))
    assert smaller < sum(size_of(weight.tensor) for weight in weights_of(build_transformer(**sizes).blocks[0])) / 1.5
    streamer = streamed(transformer, lane=Late())
    streamer.onload()

    assert same(run(transformer, embedded(transformer)), run(plain, embedded(plain)))


def test_a_lora_that_is_laid_beside_later_comes_with_its_blocks() -> None:
    generator = torch.Generator().manual_seed(0)
    lora = {
        f"diffusion_model.blocks.{index}.{name}": torch.randn(shape, generator=generator)
        for index in range(LAYERS)
        for name, shape in {
            "self_attn.q.lora_down.weight": (2, 24),
            "self_attn.q.lora_up.weight": (24, 2),
            "self_attn.k.diff_b": (24,),
            "self_attn.o.diff": (24, 24),
        }.items()
    }
    plain, transformer = build_transformer(num_layers=LAYERS), build_transformer(num_layers=LAYERS)
    streamer = streamed(transformer, lane=Late())
    switches = [load_runtime_lora(network, lora, "late") for network in (plain, transformer)]
    streamer.onload()

    for scale in (None, 0.7, 0.3, None):
        for switch in switches:
            switch.disable() if scale is None else switch.enable(scale)
        assert same(run(transformer, embedded(transformer)), run(plain, embedded(plain)))


def test_nothing_stays_on_the_device_and_nothing_is_copied_back() -> None:
    transformer = build_transformer(num_layers=LAYERS)
    streamer = streamed(transformer, "meta", room=2**20, resident=1)
    before = list(transformer.parameters())
    root = [weight.tensor for weight in weights_of(transformer, excluding=list(transformer.blocks))]
    with torch.no_grad(), Crossings() as coming:
        streamer.onload()
    assert len(coming.seen) == len(root)
    conditions = embedded(transformer, device="meta")
    latents, time = torch.zeros(1, 36, *SHAPE, device="meta"), torch.zeros(1, device="meta")
    with torch.no_grad():
        transformer(latents, time, conditions=conditions)

    with torch.no_grad(), Crossings() as forward:
        transformer(latents, time, conditions=conditions)
    with Crossings() as going:
        streamer.offload()

    # A block is one copy, and what is in none is there.
    assert forward.seen == ["aten.copy_.default"] * (LAYERS - 1)
    assert going.seen == []
    assert all(now is then for now, then in zip(transformer.parameters(), before, strict=True))
    assert not any(parameter.is_meta for parameter in transformer.parameters())
    assert transformer._rotary is None
    assert (streamer._shared, streamer._own) == ([], {})


# --- the host's memory ------------------------------------------------------------------------------------------------


def test_slices_begin_at_whole_steps_and_pieces_are_powers_of_two() -> None:
    sizes = [1, 4096, 700, 512, 3000, 0, 5]
    arena = Arena(sum(map(rounded, sizes)), pinned=False)

    slices = [arena.take(size) for size in sizes]

    assert [one.memory.numel() for one in slices] == sizes
    assert all(one.begin % STEP == 0 for one in slices)
    ends = sorted((one.piece, one.begin, one.begin + one.memory.numel()) for one in slices if one.memory.numel())
    assert all(now[0] != then[0] or now[2] <= then[1] for now, then in pairwise(ends))
    assert all(piece.numel().bit_count() == 1 for piece in arena._pieces)


def test_values_are_kept_and_tied_weights_stay_tied() -> None:
    layer, other = nn.Linear(7, 3), nn.Linear(7, 3)
    other.weight = layer.weight
    both = nn.ModuleList([layer, other])
    before = {name: value.detach().clone() for name, value in both.state_dict().items()}

    copy_to_arena(weights_of(both), Arena(0, pinned=False))

    assert all(torch.equal(value, before[name]) for name, value in both.state_dict().items())
    assert layer.weight is other.weight
    assert layer.weight.requires_grad


def test_the_pages_of_a_file_are_let_go_of_as_weights_leave_them(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.rand(1024, 1024), "bias": torch.rand(1024)}, file)
    with torch.device("meta"):
        layer = nn.Linear(1024, 1024)
    fill(layer, find_stored(tmp_path), lambda _name: torch.float32, AheadReader(), "cpu")
    before = layer.weight.detach().clone()

    def mapped() -> bool:
        return str(file) in Path("/proc/self/maps").read_text()

    assert mapped()
    copy_to_arena(weights_of(layer), Arena(2**22, pinned=False))

    assert not mapped()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_published_network_wastes_little_memory(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(_arena: Arena, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device="meta")

    monkeypatch.setattr(Arena, "_memory", nowhere)
    with torch.device("meta"):
        transformer = MultiTalkTransformer3DModel()
    for name, parameter in transformer.named_parameters():
        kind = torch.float32 if kept_in_float32(MultiTalkTransformer3DModel, name) else torch.bfloat16
        matrix = name.startswith("blocks.") and parameter.ndim == 2 and name.endswith("weight")
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype if matrix else kind)
    size = sum(size_of(weight.tensor) for weight in weights_of(transformer))

    streamer = streamed(transformer, "meta")

    assert streamer.arena.size <= 1.02 * size
    assert all(len(block.runs) <= 8 for block in streamer.blocks)
    assert {part.device.type for weight in weights_of(transformer) for part in parts_of(weight.tensor)} == {"meta"}
