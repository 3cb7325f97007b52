"""Memory modes: what is on the device at a time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_folder import SIZES, build_transformer, build_vae
from torch import nn

from engine.errors import ConfigError, UnknownComponent
from engine.multitalk.cache import TeaCache, make_cache
from engine.multitalk.codec import WanCodec
from engine.multitalk.memory import place, trace_blocks

NAMES = ("transformer", "vae", "text_encoder", "image_encoder")


class Part(nn.Module):
    """Keeps a log of where it was moved; "there" stands for a device this machine does not have."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        super().__init__()
        self.name, self.log = name, log

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.log.append((self.name, str(device)))
        if device == "full":
            raise RuntimeError("out of memory")
        return self


@pytest.fixture
def log() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def parts(log: list[tuple[str, str]]) -> dict[str, nn.Module]:
    return {name: Part(name, log) for name in NAMES}


def there(log: list[tuple[str, str]]) -> set[str]:
    where = dict(log)
    return {name for name, device in where.items() if device != "cpu"}


def test_none_puts_everything_there_at_once(parts: dict[str, nn.Module], log: list[tuple[str, str]]) -> None:
    placement = place("none", parts, device="there")

    assert there(log) == set(NAMES)
    with placement.use("vae"), placement.use("transformer"):
        assert len(log) == len(NAMES)
    placement.close()
    assert there(log) == set()


def test_model_offload_has_one_there_at_a_time(parts: dict[str, nn.Module], log: list[tuple[str, str]]) -> None:
    placement = place("model-offload", parts, device="there")

    assert there(log) == set()
    for name in ("text_encoder", "vae", "transformer", "vae"):
        with placement.use(name):
            assert there(log) == {name}
    placement.close()
    assert there(log) == set()


def test_model_offload_moves_nothing_between_two_uses_of_one_part(
    parts: dict[str, nn.Module], log: list[tuple[str, str]]
) -> None:
    placement = place("model-offload", parts, device="there")
    for _ in range(3):
        with placement.use("transformer"), placement.use("transformer"):
            pass

    assert log.count(("transformer", "there")) == 1
    assert log.count(("transformer", "cpu")) == 1


def test_model_offload_refuses_two_at_once(parts: dict[str, nn.Module], log: list[tuple[str, str]]) -> None:
    placement = place("model-offload", parts, device="there")

    with placement.use("vae"):
        with pytest.raises(RuntimeError, match="vae is in use"), placement.use("transformer"):
            pass
        assert there(log) == {"vae"}
    with placement.use("transformer"):
        assert there(log) == {"transformer"}


def test_a_part_that_does_not_fit_is_taken_back(parts: dict[str, nn.Module], log: list[tuple[str, str]]) -> None:
    placement = place("model-offload", parts, device="full")

    with pytest.raises(RuntimeError, match="out of memory"), placement.use("vae"):
        pass
    assert log[-1] == ("vae", "cpu")
    assert there(log) == set()


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
    placement = place("group-offload", {"transformer": offloaded, "vae": nn.Identity()}, device="cpu", blocks=blocks)

    with placement.use("transformer"):
        outputs = run(offloaded, make_cache("none"))

    assert all(torch.equal(*pair) for pair in zip(outputs, run(plain, make_cache("none")), strict=True))
    assert any(hasattr(block, "_diffusers_hook") for block in offloaded.blocks)


def test_a_step_cache_works_over_group_offload() -> None:
    arguments: dict[str, Any] = {"threshold": 1e9, "warmup": 1, "coefficients": (1.0, 0.0)}
    plain, offloaded = build_transformer(), build_transformer()
    place("group-offload", {"transformer": offloaded}, device="cpu")
    caches = [make_cache("teacache", **arguments) for _ in range(2)]

    pairs = zip(run(plain, caches[0]), run(offloaded, caches[1]), strict=True)

    assert all(torch.equal(*pair) for pair in pairs)
    assert isinstance(caches[1], TeaCache)
    assert caches[1].computed == [True, False, False]


def test_tracing_teaches_the_order_of_all_blocks() -> None:
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.group_offloading import (
        _GROUP_OFFLOADING,
        _LAZY_PREFETCH_GROUP_OFFLOADING,
        LazyPrefetchGroupOffloadingHook,
    )

    transformer = build_transformer()
    place("group-offload", {"transformer": transformer}, device="cpu")
    # What diffusers adds where there are streams, which need CUDA.
    registry = HookRegistry.check_if_exists_or_initialize(transformer)
    registry.register_hook(LazyPrefetchGroupOffloadingHook(), _LAZY_PREFETCH_GROUP_OFFLOADING)

    trace_blocks(transformer, "cpu")

    hooks = [registry, *(block._diffusers_hook for block in transformer.blocks)]
    order = [hook.get_hook(_GROUP_OFFLOADING) for hook in hooks]
    assert all(hook.next_group is follower.group for hook, follower in pairwise(order))
    assert all(len(hook.hooks) == 1 for hook in hooks)
    pairs = zip(run(transformer, make_cache("none")), run(build_transformer(), make_cache("none")), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_group_offload_leaves_the_room_to_the_transformer(log: list[tuple[str, str]]) -> None:
    parts = {"transformer": build_transformer(), "vae": Part("vae", log)}
    placement = place("group-offload", parts, device="cpu")
    with placement.use("vae"):
        pass
    before = len(log)

    with placement.use("transformer"):
        assert log[before:] == [("vae", "cpu")]


def test_the_vae_decodes_under_model_offload() -> None:
    vae = build_vae()
    placement = place("model-offload", {"vae": vae}, device="cpu")

    with placement.use("vae"):
        assert WanCodec(vae).decode(torch.zeros(16, 1, 2, 2)).shape == (3, 1, 16, 16)


@pytest.mark.parametrize("blocks", [0, -1])
def test_groups_of_no_blocks_are_refused(blocks: int, parts: dict[str, nn.Module]) -> None:
    with pytest.raises(ConfigError) as caught:
        place("group-offload", parts, device="cpu", blocks=blocks)

    assert caught.value.field == "memory.blocks"


def test_unknown_mode_lists_the_known(parts: dict[str, nn.Module]) -> None:
    with pytest.raises(UnknownComponent, match="model-offload"):
        place("disk", parts, device="cpu")
