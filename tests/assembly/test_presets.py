"""Every preset composes, says what it is for, and what depends on the model comes from the model."""

from __future__ import annotations

from functools import cache
from itertools import product, zip_longest
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore

from engine.assembly.compose import compose
from engine.assembly.location import WeightsFinder
from engine.assembly.sampling import build_sampling
from engine.assembly.settings import make_plan_inputs
from engine.config import ModelConfig
from engine.data import PlanInputs
from engine.errors import ConfigError
from engine.plugin.manager import installed
from plugins.samplers.euler import Euler, EulerConfig

CONF = Path(__file__).parents[2] / "conf"
PRESETS = sorted(path for path in CONF.glob("*/*.yaml"))
NAMES = [f"{path.parent.name}={path.stem}" for path in PRESETS]
MODELS = [path.stem for path in sorted((CONF / "model").glob("*.yaml"))]


@cache
def model(name: str) -> ModelConfig:
    return compose([f"model={name}"]).model


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_preset_composes_alone(path: Path) -> None:
    group, name = path.parent.name, path.stem
    config = compose([f"{group}={name}"] if name != "distilled" else ["sampler=distilled", "model=multitalk"])
    if group in ("model", "quant", "memory", "parallel"):
        # A preset of a component has its name; others have their own.
        stated = yaml.safe_load(path.read_text("utf-8"))
        assert getattr(config, group).name == (name if "name" in stated else stated["defaults"][0])


#: Other groups do not depend on the model.
OF_MODELS = [path for path in PRESETS if path.parent.name in ("recipe", "sampler", "experiment")]


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_MODELS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_preset_composes_with_every_other_model_that_has_its_resolution(path: Path) -> None:
    wanted = yaml.safe_load(path.read_text("utf-8")) or {}
    for name in MODELS:
        words = [f"model={name}", f"{path.parent.name}={path.stem}"]
        if path.parent.name == "sampler" and path.stem not in model(name).bundles:
            with pytest.raises(ConfigError, match=f"model={name} has no '{path.stem}' bundle") as caught:
                compose(words)
            assert (caught.value.field, caught.value.hint) == ("sampler", "choose sampler=standard or sampler=turbo")
        elif wanted.get("resolution", "") in ("", *model(name).resolutions):
            compose(words)


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_preset_says_on_top_what_it_is_for(path: Path) -> None:
    said = [line for line in path.read_text("utf-8").splitlines() if line.startswith("#") and "@package" not in line]
    assert said


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_preset_does_not_bear_the_name_of_a_component(path: Path) -> None:
    # It would inherit from itself.
    installed()
    nodes = ConfigStore.instance().repo.get(path.parent.name, {})
    assert path.name not in nodes


def test_conf_holds_presets_alone() -> None:
    allowed = {".yaml": None, ".py": "__init__.py"}
    for path in CONF.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.suffix in allowed, path
            assert allowed[path.suffix] in (None, path.name), path


@pytest.mark.slow
def test_every_option_of_every_component_composes() -> None:
    # The store is the process': components come from the book, since other tests store theirs as well.
    offered = {register.group: register.names() for register in installed().registers}
    # The first of all groups together, then the second of all, ...
    for names in zip_longest(*offered.values()):
        chosen = {group: name for group, name in zip(offered, names, strict=True) if name is not None}
        config = compose([f"{group}={name}" for group, name in chosen.items()])
        assert {group: getattr(config, group).name for group in chosen} == chosen


@pytest.mark.parametrize("name", MODELS)
def test_model_gives_steps_shift_and_scales_of_both_modes(name: str) -> None:
    for mode, bundle in (("standard", model(name).standard), ("turbo", model(name).turbo)):
        config = compose([f"model={name}", f"sampler={mode}"])
        assert (config.sampler.steps, config.sampler.shift) == (bundle.steps, bundle.shift)
        assert (config.guidance.text_scale, config.guidance.audio_scale) == (bundle.text_scale, bundle.audio_scale)
    standard, turbo, made_for = model(name).standard, model(name).turbo, model(name).made_for
    if turbo == standard:
        # Of some models only one way is published.
        return
    # A model that was distilled itself needs no other LoRA for fewer steps.
    assert (turbo.loras != standard.loras) == made_for.guidance
    assert turbo.steps < standard.steps


@pytest.mark.parametrize(
    ("name", "recipe"),
    [("multitalk", "none"), ("infinitetalk", "card-24gb"), ("multitalk", "card-48gb-720p"), ("infinitetalk", "long")],
)
def test_distilled_takes_the_noise_levels_of_its_publisher_and_no_guidance(name: str, recipe: str) -> None:
    config = compose([f"recipe={recipe}", f"model={name}", "sampler=distilled"])
    assert isinstance(config.sampler, EulerConfig)
    # LightX2V, denoising_step_list 1000, 750, 500, 250 with sample_shift 5.
    shifted = [1000 * 5 * level / (1 + 4 * level) for level in (1, 0.75, 0.5, 0.25)]
    assert Euler(config.sampler).schedule().timesteps == pytest.approx([*shifted, 0])
    assert config.guidance.branches() == ("cond",)
    # Turbo stays as it is.
    turbo = compose([f"model={name}", "sampler=turbo"])
    assert (turbo.sampler.steps, getattr(turbo.sampler, "spacing", "")) == (8, "linspace")


@pytest.mark.parametrize("name", MODELS)
def test_resolution_chooses_shift_and_cache_coefficients(name: str) -> None:
    for key, resolution in model(name).resolutions.items():
        config = compose([f"model={name}", f"resolution={key}", "cache=teacache"])
        assert config.sampler.shift == resolution.shift
        assert getattr(config.cache, "coefficients") == resolution.teacache  # noqa: B009 - a field of this cache alone
        config = compose([f"model={name}", f"resolution={key}", "cache=magcache"])
        assert getattr(config.cache, "magnitudes") == resolution.magcache  # noqa: B009 - a field of this cache alone


@pytest.mark.parametrize("name", MODELS)
def test_buckets_fit_the_network(name: str) -> None:
    # The autoencoder's 8 times the patch of 2.
    for resolution in model(name).resolutions.values():
        assert resolution.buckets
        for ratio, (height, width) in resolution.buckets.items():
            assert height % 16 == 0
            assert width % 16 == 0
            assert height / width == pytest.approx(float(ratio), abs=0.0051)


@pytest.mark.parametrize("name", MODELS)
def test_windows_are_whole_groups_of_frames(name: str) -> None:
    assert model(name).window % 4 == 1
    assert model(name).continuation.frames % 4 == 1
    assert model(name).continuation.frames < model(name).window


@pytest.mark.parametrize("path", PRESETS, ids=NAMES)
def test_preset_sets_no_key_twice(path: Path) -> None:
    # YAML would drop the first in silence.
    keys = [line.partition(":")[0] for line in path.read_text("utf-8").splitlines() if line[:1].isalpha()]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_modes_and_guidances_and_caches_combine() -> None:
    caches = ("none", "teacache", "firstblock", "taylorseer", "magcache", "easycache")
    # Each pair of two kinds is there, not each triple.
    for index, (sampler, cached) in enumerate(product(("standard", "turbo", "unipc"), caches)):
        guidance = ("cfg", "apg")[(index + index // len(caches)) % 2]
        config = compose([f"sampler={sampler}", f"guidance={guidance}", f"cache={cached}"])
        assert (config.guidance.name, config.cache.name) == (guidance, cached)


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("sampler=euler", "sampler"),
        ("sampler=unipc", "sampler"),
        ("sampler.steps=20", "sampler.steps"),
        ("guidance.text_scale=7.5", "guidance.text_scale"),
        ("guidance.audio_scale=2", "guidance.audio_scale"),
        ("cache=teacache", "cache"),
    ],
)
def test_what_flashtalk_was_not_made_for_is_refused(word: str, field: str) -> None:
    with pytest.raises(ConfigError, match="model=flashtalk") as caught:
        plan_inputs("model=flashtalk", word)
    assert caught.value.field == field
    assert caught.value.hint


def test_flashtalk_samples_by_its_own_solver_in_both_modes() -> None:
    for mode, times in (("standard", [1000, 937.5, 833.3333, 625, 0]), ("turbo", [1000, 833.3333, 0])):
        inputs = plan_inputs("model=flashtalk", f"sampler={mode}")
        assert (inputs.sampler, inputs.passes, inputs.whole_windows) == (f"renoise ({mode})", 1, True)
        sampling = build_sampling(compose(["model=flashtalk", f"sampler={mode}"]), installed())
        assert sampling.sampler.schedule().timesteps == pytest.approx(times)
        # So a negative prompt is told to have no effect.
        assert not inputs.negative
    assert plan_inputs("model=multitalk").negative
    # As the public code had it when the weights were made.
    assert compose(["model=flashtalk"]).vae.decode_dtype == "float32"
    assert compose(["model=flashtalk", "vae.decode_dtype=auto"]).vae.decode_dtype == "auto"
    assert compose(["model=multitalk"]).vae.decode_dtype == "auto"
    # Only a distilled model has such limits.
    assert plan_inputs("model=infinitetalk", "sampler=unipc", "cache=teacache").speakers == 0


def plan_inputs(*words: str) -> PlanInputs:
    config = compose(list(words))
    return make_plan_inputs(config, installed(), WeightsFinder(installed()))
