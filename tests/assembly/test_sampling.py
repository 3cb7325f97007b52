"""Guidance, step cache and quantisation of somebody else are used, and counted by plans, as the bundled ones are."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from tiny_folder import SIZES, build_transformer
from torch import Tensor

from engine import hookimpl
from engine.assembly.compose import compose
from engine.assembly.estimates import make_load
from engine.assembly.location import WeightsFinder
from engine.assembly.sampling import build_sampling
from engine.assembly.settings import make_plan_inputs
from engine.components import Agree, CacheCost, StepCache
from engine.config import CacheConfig, ComponentConfig, Config, GuidanceConfig, QuantConfig
from engine.data import Conditions
from engine.errors import ConfigError, MissingExtra, UnknownComponent
from engine.pipeline import Engine
from engine.planning import memory
from engine.planning.memory import Load, Work
from engine.planning.parameters import Quant, published_sizes
from engine.plugin.manager import GROUP, Registry
from engine.stages.denoise import denoise, draw_noise

SHAPE = (3, 4, 4)


@dataclass
class QuietConfig(GuidanceConfig):
    """Guidance by the voices alone, against silence and no prompt."""

    name: str = "test-quiet"
    #: Branches that it asks for.
    asks: str = "cond uncond"


class Quiet:
    def __init__(self, config: QuietConfig) -> None:
        self.branches = tuple(config.asks.split())
        self.scale = config.audio_scale

    def reset(self) -> None: ...

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        return predictions["uncond"] + self.scale * (predictions["cond"] - predictions["uncond"])


@dataclass
class LastConfig(CacheConfig):
    """Computes every second evaluation; the others give what the one before gave."""

    name: str = "test-last"


class Last:
    def __init__(self, config: LastConfig) -> None:
        self.seen: list[tuple[str, int]] = []

    @contextmanager
    def attach(self, transformer: Any) -> Iterator[None]:
        original, kept = transformer.forward, dict[str, Any]()

        def forward(*args: Any, **given: Any) -> Any:
            name, step = self.seen[-1]
            if step % 2 == 0:
                kept[name] = original(*args, **given)
            return kept[name]

        transformer.forward = forward
        try:
            yield
        finally:
            del transformer.forward

    def branch(self, name: str, step: int) -> AbstractContextManager[None]:
        self.seen.append((name, step))
        return nullcontext()

    def cost(self, *, branches: int, tokens: int, channels: int, blocks: int) -> CacheCost:
        return CacheCost(kept=branches * tokens * channels * blocks)


@dataclass
class CoarseConfig(QuantConfig):
    """Rounds weights to so many levels."""

    name: str = "test-coarse"
    levels: int = 4


class Coarse:
    def __init__(self, config: CoarseConfig) -> None:
        self.levels = config.levels

    def check(self) -> None:
        if self.levels > 16:
            raise MissingExtra("quant=test-coarse", "acme", "acme")

    def cost(self) -> tuple[float, int]:
        return 0.5, 2

    def apply(self, transformer: Any, chosen: Callable[[Any, str], bool]) -> None:
        for name, module in transformer.named_modules():
            if chosen(module, name):
                step = module.weight.data.abs().max() / self.levels
                module.weight.data = (module.weight.data / step).round() * step


class AgreedLast(Last):
    def shared(self, agree: Agree) -> StepCache:
        self.agree = agree
        return self


@dataclass
class AgreedConfig(LastConfig):
    name: str = "test-agreed"


@pytest.fixture
def registry() -> Registry:
    """The bundled components and those of a package of somebody else."""
    plugin = types.ModuleType("acme_steering")

    def register_guidance(register: Any) -> None:
        register(Quiet, QuietConfig)

    def register_caches(register: Any) -> None:
        register(Last, LastConfig)
        register(AgreedLast, AgreedConfig)

    def register_quants(register: Any) -> None:
        register(Coarse, CoarseConfig)

    for hook in (register_guidance, register_caches, register_quants):
        setattr(plugin, hook.__name__, hookimpl(hook))
    made = Registry()
    made.plugins.register(plugin)
    made.load(entry_points(group=GROUP))
    return made


def config(**groups: ComponentConfig | str) -> Config:
    return replace(compose(["model=tiny", "sampler.steps=4"]), **groups)  # type: ignore[arg-type]


def quiet(asks: str = "cond uncond") -> QuietConfig:
    return QuietConfig(text_scale=5.0, audio_scale=3.0, asks=asks)


def test_its_branches_are_run_and_are_what_a_plan_counts(registry: Registry) -> None:
    asked = config(guidance=quiet(), cache=LastConfig())
    transformer, generator = build_transformer(), torch.Generator().manual_seed(0)
    choices = build_sampling(asked, registry)
    image = torch.randn(1, SIZES["image_tokens"], SIZES["image_dim"], generator=generator)
    with torch.no_grad():
        branches = {
            name: transformer.embed_conditions(SHAPE, torch.randn(1, 4, SIZES["text_dim"], generator=generator), image)
            for name in choices.guidance.branches
        }
    calls = []
    handle = transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))

    latents = denoise(
        transformer,
        Conditions(torch.zeros(20, *SHAPE), branches, None),
        draw_noise((16, *SHAPE), generator),
        sampler=choices.sampler,
        guidance=choices.guidance,
        cache=choices.cache,
        generator=generator,
    )
    handle.remove()

    assert make_plan_inputs(asked, registry, WeightsFinder(registry)).passes == 2
    assert latents.isfinite().all()
    assert isinstance(choices.cache, Last)
    assert choices.cache.seen == [(name, step) for step in range(4) for name in ("cond", "uncond")]
    assert len(calls) == 2 * 2


@pytest.mark.parametrize("asks", ["cond drop_everything", ""])
def test_a_branch_that_nobody_can_run_is_refused_before_any_work(asks: str, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="cond, drop_text, drop_audio, uncond") as caught:
        make_plan_inputs(config(guidance=quiet(asks)), registry, WeightsFinder(registry))
    assert caught.value.field == "guidance"


def test_a_cache_that_says_nothing_of_several_processes_is_refused_there(registry: Registry) -> None:
    assert build_sampling(config(cache=LastConfig()), registry)
    with pytest.raises(ConfigError, match="cache=test-last does not work if several processes"):
        build_sampling(config(cache=LastConfig()), registry, agree=bool)
    shared = build_sampling(config(cache=AgreedConfig()), registry, agree=bool).cache
    assert isinstance(shared, AgreedLast)
    assert shared.agree is bool


def test_a_plan_counts_the_bytes_that_the_cache_says_it_keeps(registry: Registry) -> None:
    sizes = published_sizes("wan-14b")
    work = Work((21, 56, 112), 81, 448, 896, speakers=1, passes=2, seconds=3.24)

    def denoising(load: Load) -> int:
        return next(stage for stage in memory.stages(sizes, load, work) if stage.stage == "denoise").temporaries

    given = {"device": "cuda", "dtype": "bfloat16"}
    plain, cached = (
        denoising(make_load(config(cache=cache), registry, **given)) for cache in (compose([]).cache, LastConfig())
    )
    tokens = 21 * (56 // 2) * (112 // 2)
    assert cached - plain == 2 * tokens * 5120 * 40


def levels(engine: Engine, name: str) -> int:
    # A LoRA beside a layer makes it the base of another.
    model: Any = engine.load().model
    named = model.transformer.named_parameters()
    return len({key.replace(".base_layer", ""): value for key, value in named}[name].unique())


def test_a_quantisation_is_made_while_loading_and_loaded_anew_where_its_config_differs(registry: Registry) -> None:
    coarse, head, embedder = "blocks.0.attn1.to_q.weight", "proj_out.weight", "condition_embedder.time_proj.weight"
    first = Engine(config(quant=CoarseConfig(), device="cpu"), registry)
    assert levels(first, coarse) <= 2 * 4 + 1
    # Linear layers, of no block.
    assert levels(first, head) > 100
    assert levels(first, embedder) > 100
    second = Engine(config(quant=CoarseConfig(), device="cpu"), registry, after=first)
    assert levels(second, coarse) <= 2 * 4 + 1
    assert second.reused
    third = Engine(config(quant=CoarseConfig(levels=8), device="cpu"), registry, after=second)
    assert 2 * 4 + 1 < levels(third, coarse) <= 2 * 8 + 1
    assert not third.reused


def test_a_plan_counts_the_bytes_of_a_weight_that_a_quantisation_says(registry: Registry) -> None:
    sizes = published_sizes("wan-14b")
    dense, load = (
        make_load(config(quant=quant), registry, device="cpu", dtype="float32")
        for quant in (compose([]).quant, CoarseConfig())
    )
    assert load.kept == Quant(0.5, 2)
    saved = memory.weights_bytes(sizes, dense)["transformer"] - memory.weights_bytes(sizes, load)["transformer"]
    transformer = sizes.counts["transformer"]
    assert saved == transformer.linear * 7 // 2 - transformer.rows * 2


def test_a_quantisation_whose_package_is_absent_is_refused_before_weights_are_read(registry: Registry) -> None:
    engine = Engine(config(quant=CoarseConfig(levels=99), device="cpu"), registry)
    with pytest.raises(MissingExtra, match="quant=test-coarse"):
        engine.load()
    assert not engine.loaded


def test_a_mistyped_name_lists_the_installed_ones(registry: Registry) -> None:
    @dataclass
    class WrongConfig(CacheConfig):
        name: str = "test-lasst"

    with pytest.raises(UnknownComponent, match=r"no cache named 'test-lasst'; installed: .*none, .*test-last"):
        build_sampling(config(cache=WrongConfig()), registry)
