"""Step caches: what they skip, what they keep apart, and that they leave nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
import torch
from steering import make_cache
from tiny_folder import SIZES, build_transformer
from torch import Tensor

from engine.assembly.compose import compose
from engine.components import StepCache
from engine.errors import ConfigError, UnknownComponent
from engine.network.step_caches import CountingCache, TimedCache
from plugins.caches.easycache import EasyCache
from plugins.caches.magcache import MagCache
from plugins.caches.teacache import TeaCache

SHAPE = (2, 4, 4)
TIMES = (1000.0, 950.0, 900.0, 820.0, 700.0, 500.0, 300.0, 100.0)
#: Estimates the change by itself.
IDENTITY = (1.0, 0.0)


@pytest.fixture(scope="module")
def transformer() -> Any:
    return build_transformer()


@pytest.fixture(scope="module")
def conditions(transformer: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, SIZES["image_tokens"], SIZES["image_dim"], generator=generator)
    texts = [torch.randn(1, 4, SIZES["text_dim"], generator=generator) for _ in range(3)]
    with torch.no_grad():
        return {
            name: transformer.embed_conditions(SHAPE, text, image)
            for name, text in zip(("cond", "drop_text", "uncond"), texts, strict=True)
        }


class Counter:
    """Counts the forwards that reach the middle block's own code."""

    def __init__(self, transformer: Any) -> None:
        self.calls = 0
        self.handle = transformer.blocks[1].attn1.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


def run(transformer: Any, conditions: dict[str, Any], cache: StepCache, branches: Sequence[str]) -> list[Tensor]:
    outputs = []
    counter = Counter(transformer)
    with torch.no_grad(), cache.attach(transformer):
        for step, time in enumerate(TIMES):
            latents = torch.randn(1, 36, *SHAPE, generator=torch.Generator().manual_seed(step))
            if isinstance(cache, TimedCache):
                cache.at(time)
            for branch in branches:
                with cache.branch(branch, step):
                    outputs.append(transformer(latents, torch.tensor([time]), conditions=conditions[branch]).sample)
        assert isinstance(cache, CountingCache)
        assert cache.skipped == len(outputs) - counter.calls
    counter.handle.remove()
    run.calls = counter.calls  # type: ignore[attr-defined]
    return outputs


def calls() -> int:
    count: int = run.calls  # type: ignore[attr-defined]
    return count


@pytest.fixture(scope="module")
def exact(transformer: Any, conditions: dict[str, Any]) -> list[Tensor]:
    return run(transformer, conditions, make_cache("none"), ("cond", "drop_text", "uncond"))


SKIPPING: dict[str, dict[str, Any]] = {
    "teacache": {"threshold": 1e9, "warmup": 2, "coefficients": IDENTITY},
    "firstblock": {"threshold": 1e9},
    "taylorseer": {"warmup": 2, "interval": 3, "order": 1},
    "magcache": {"threshold": 1e9, "warmup": 2, "skips": 3, "magnitudes": (1.0, 0.5)},
    "easycache": {"threshold": 1e9, "warmup": 2},
}


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_branches_do_not_touch_each_other(name: str, count: int, transformer: Any, conditions: dict[str, Any]) -> None:
    branches = ("cond", "drop_text", "uncond")[:count]
    together = run(transformer, conditions, make_cache(name, **SKIPPING[name]), branches)

    assert 0 < calls() < len(TIMES) * count
    for index, branch in enumerate(branches):
        alone = run(transformer, conditions, make_cache(name, **SKIPPING[name]), (branch,))
        for ours, theirs in zip(together[index::count], alone, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SKIPPING)
def test_a_second_window_starts_empty(name: str, transformer: Any, conditions: dict[str, Any]) -> None:
    cache = make_cache(name, **SKIPPING[name])
    first, second = (run(transformer, conditions, cache, ("cond", "uncond")) for _ in range(2))

    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("name", SKIPPING)
def test_nothing_stays_behind_after_an_error(
    name: str, transformer: Any, conditions: dict[str, Any], exact: list[Tensor]
) -> None:
    cache = make_cache(name, **SKIPPING[name])
    with pytest.raises(RuntimeError, match="stop"), cache.attach(transformer), cache.branch("cond", 0):
        raise RuntimeError("stop")

    again = run(transformer, conditions, make_cache("none"), ("cond", "drop_text", "uncond"))

    assert calls() == 3 * len(TIMES)
    assert all(torch.equal(*pair) for pair in zip(again, exact, strict=True))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("teacache", {"threshold": 1e-9, "warmup": 1, "coefficients": IDENTITY}),
        ("firstblock", {"threshold": 0.0}),
        ("taylorseer", {"warmup": 2, "interval": 1, "order": 1}),
        ("magcache", {"threshold": 1e-9, "warmup": 1, "magnitudes": (1.0, 0.5)}),
        ("easycache", {"threshold": 1e-9}),
    ],
)
def test_the_strictest_setting_is_exact(
    name: str, arguments: dict[str, Any], transformer: Any, conditions: dict[str, Any], exact: list[Tensor]
) -> None:
    outputs = run(transformer, conditions, make_cache(name, **arguments), ("cond", "drop_text", "uncond"))

    assert calls() == 3 * len(TIMES)
    for ours, theirs in zip(outputs, exact, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_teacache_decides_by_the_summed_change_of_the_time_embedding(
    transformer: Any, conditions: dict[str, Any]
) -> None:
    with torch.no_grad():
        signals = [transformer.condition_embedder(torch.tensor([time]))[1] for time in TIMES]
    changes = [0.0] + [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairwise(signals)]
    threshold = 1.5 * changes[3]
    wanted, total = [], 0.0
    for step, change in enumerate(changes):
        total += 2 * change**2 + change
        wanted.append(step < 2 or total >= threshold)
        total = 0.0 if wanted[-1] else total
    cache = make_cache("teacache", threshold=threshold, warmup=2, coefficients=(2.0, 1.0, 0.0))

    run(transformer, conditions, cache, ("cond", "drop_text"))

    assert isinstance(cache, TeaCache)
    assert cache.computed == wanted
    assert len(set(wanted[2:])) == 2
    assert calls() == 2 * sum(wanted)


def test_magcache_decides_by_the_summed_error_of_measured_magnitudes(
    transformer: Any, conditions: dict[str, Any]
) -> None:
    # The magnitude is 2 ** (time / 1000): its logarithm is linear.
    magnitudes = [2.0 ** (1 - index / 4) for index in range(5)]
    wanted, error, reference = [], 0.0, TIMES[0]
    for step, time in enumerate(TIMES):
        error += abs(1 - 2 ** ((time - reference) / 1000))
        wanted.append(step < 2 or error >= 0.2)
        if wanted[-1]:
            error, reference = 0.0, time
    cache = make_cache("magcache", threshold=0.2, warmup=2, skips=9, magnitudes=magnitudes)

    run(transformer, conditions, cache, ("cond", "drop_text"))

    assert isinstance(cache, MagCache)
    assert cache.computed == wanted
    assert len(set(wanted[2:])) == 2


def test_magcache_skips_no_more_steps_in_a_row_than_allowed(transformer: Any, conditions: dict[str, Any]) -> None:
    cache = make_cache("magcache", threshold=1e9, warmup=1, skips=2, magnitudes=(1.0, 0.5))

    run(transformer, conditions, cache, ("cond",))

    assert isinstance(cache, MagCache)
    assert cache.computed == [True, False, False, True, False, False, True, False]


def test_a_model_without_magnitudes_is_refused_with_the_command_that_measures_them() -> None:
    with pytest.raises(ConfigError, match="evaluate_tiny magnitudes"):
        make_cache("magcache", magnitudes=[])


def test_easycache_adds_the_last_difference_of_output_and_input(transformer: Any, conditions: dict[str, Any]) -> None:
    cache = make_cache("easycache", threshold=1e9, warmup=2)
    outputs = run(transformer, conditions, cache, ("cond",))

    assert isinstance(cache, EasyCache)
    assert cache.computed == [True, True, *[False] * 6]
    latents = [torch.randn(1, 36, *SHAPE, generator=torch.Generator().manual_seed(step))[:, :16] for step in (1, 5)]
    torch.testing.assert_close(outputs[5], outputs[1] + latents[1] - latents[0], atol=1e-5, rtol=0)


def test_teacache_works_on_one_block(conditions: dict[str, Any]) -> None:
    transformer = build_transformer(num_layers=1)
    cache = make_cache("teacache", threshold=1e9, warmup=1, coefficients=IDENTITY)
    latents, outputs = torch.ones(1, 36, *SHAPE), []

    with torch.no_grad(), cache.attach(transformer):
        for step in range(2):
            with cache.branch("cond", step):
                outputs.append(transformer(latents, torch.tensor([500.0]), conditions=conditions["cond"]).sample)

    assert isinstance(cache, TeaCache)
    assert cache.computed == [True, False]
    # Same input and time: the residual is exact but for one addition.
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=0)


def test_first_block_cache_needs_blocks_to_skip() -> None:
    with (
        pytest.raises(ConfigError, match="one block"),
        make_cache("firstblock").attach(build_transformer(num_layers=1)),
    ):
        pass


@pytest.mark.parametrize("name", SKIPPING)
@pytest.mark.parametrize("cancelled", [False, True], ids=["to its end", "cancelled"])
def test_no_tensor_of_a_state_outlives_its_window(
    transformer: Any, conditions: dict[str, Any], name: str, cancelled: bool
) -> None:
    def tensors() -> dict[int, Tensor]:
        return {id(found): found for found in gc.get_objects() if issubclass(type(found), Tensor)}

    cache = make_cache(name, **SKIPPING[name])
    latents = torch.randn(1, 36, *SHAPE)
    kept: list[weakref.ref[Tensor]] = []
    gc.disable()
    # What is there already is not listed any more: it may be millions of objects of other tests.
    gc.freeze()
    before = tensors()
    try:
        with suppress(KeyboardInterrupt), torch.no_grad(), cache.attach(transformer):
            for step, time in enumerate(TIMES[:4]):
                for branch in ("cond", "uncond"):
                    with cache.branch(branch, step):
                        transformer(latents, torch.tensor([time]), conditions=conditions[branch])
                        kept += [weakref.ref(found) for key, found in tensors().items() if key not in before]
                    if cancelled and step == 2:
                        raise KeyboardInterrupt
        alive = [found for found in kept if found() is not None]
    finally:
        # Not listed for good, as conftest.py has it: `unfreeze` would bring back the collected tests, too.
        gc.enable()

    assert kept
    assert not alive


@pytest.mark.parametrize("name", ["none", *SKIPPING])
def test_a_batch_of_branches_gives_what_they_give_one_by_one(
    name: str, transformer: Any, conditions: dict[str, Any]
) -> None:
    branches = ("cond", "drop_text", "uncond")
    alone, batch = (make_cache(name, **SKIPPING.get(name, {})) for _ in range(2))
    wanted = run(transformer, conditions, alone, branches)
    outputs: list[Tensor] = []
    with torch.no_grad(), batch.attach(transformer):
        for step, time in enumerate(TIMES):
            latents = torch.randn(1, 36, *SHAPE, generator=torch.Generator().manual_seed(step))
            if isinstance(batch, TimedCache):
                batch.at(time)
            with batch.branch("+".join(branches), step):
                parts = [conditions[branch] for branch in branches]
                outputs += transformer(latents, torch.tensor([time]), conditions=parts).sample.split(1)
        assert isinstance(batch, CountingCache)
        skipped = batch.skipped
        assert isinstance(alone, CountingCache)

    assert skipped == alone.skipped
    for ours, theirs in zip(outputs, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["magcache", "easycache", "teacache"])
def test_a_branch_that_leaves_the_batch_keeps_its_residual(
    name: str, transformer: Any, conditions: dict[str, Any]
) -> None:
    cache = make_cache(name, **SKIPPING[name])
    latents = torch.randn(1, 36, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), cache.attach(transformer):
        for step, branches in enumerate([("cond", "uncond")] * 2 + [("cond",)] * 2):
            with cache.branch("+".join(branches), step):
                parts = [conditions[branch] for branch in branches]
                transformer(latents, torch.tensor([TIMES[step]]), conditions=parts)
        assert isinstance(cache, CountingCache)
        assert cache.skipped == 2


def test_unknown_cache_lists_the_known() -> None:
    with pytest.raises(UnknownComponent, match="installed: easycache, firstblock, magcache, none, taylorseer"):
        compose(["cache=tecache"])


@pytest.mark.parametrize(
    ("name", "field", "arguments"),
    [
        ("teacache", "cache.coefficients", {"coefficients": ()}),
        ("teacache", "cache.threshold", {"coefficients": IDENTITY, "threshold": 0.0}),
        ("teacache", "cache.warmup", {"coefficients": IDENTITY, "warmup": 0}),
        ("firstblock", "cache.threshold", {"threshold": -0.1}),
        ("taylorseer", "cache.interval", {"interval": 0}),
        ("taylorseer", "cache.order", {"order": -1}),
        ("taylorseer", "cache.warmup", {"order": 2, "warmup": 2}),
        ("magcache", "cache.magnitudes", {"magnitudes": ()}),
        ("magcache", "cache.magnitudes", {"magnitudes": (1.0, 0.0)}),
        ("magcache", "cache.threshold", {"magnitudes": (1.0, 0.5), "threshold": 0.0}),
        ("magcache", "cache.skips", {"magnitudes": (1.0, 0.5), "skips": 0}),
        ("magcache", "cache.warmup", {"magnitudes": (1.0, 0.5), "warmup": 0}),
        ("easycache", "cache.threshold", {"threshold": 0.0}),
        ("easycache", "cache.warmup", {"warmup": 1}),
    ],
)
def test_values_out_of_range_are_named(name: str, field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_cache(name, **arguments)

    assert caught.value.field == field
